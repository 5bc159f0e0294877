r"""Search for better settings on a Ray cluster, or resume an interrupted search.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/tune.py --space tune_spaces/digpro.py --preset cifar10 --trials 32 \
            --set data.path=s3://bucket/cifar10 --set storage=s3://bucket/runs --set tracking.uri=http://mlflow:5000

Paths must have the same meaning on every node: URIs, or a folder that all nodes mount. The search space is uploaded
with the job. Submitting the same command again resumes the search; finished trials are not repeated.
`digpro submit tune ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("tune")
