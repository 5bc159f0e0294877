r"""Search for better settings on a Ray cluster, or go on where an interrupted job stopped.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/tune.py --space tune_spaces/digpro.py --preset cifar10 --trials 32 \
            --set data.path=s3://bucket/cifar10 --set storage=s3://bucket/runs --set tracking.uri=http://mlflow:5000

Paths must mean the same on every node: URIs, or a folder that all of them mount. The space travels with the job.
Submitting the same line again goes on with the search, and repeats no finished trial.
`digpro submit tune ...` does the same, after checks.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("tune")
