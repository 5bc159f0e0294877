r"""Train on a Ray cluster, or resume an interrupted job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/train.py --preset cifar10 \
            --set data.path=s3://bucket/cifar10 --set storage=s3://bucket/runs --set tracking.uri=http://mlflow:5000 \
            --set "resources.workers={min: 2, max: 8}"

Paths must have the same meaning on every node: URIs, or a folder that all nodes mount. Submitting the same command
again is always safe: it resumes from the last checkpoint, and a finished run only shows its result.
`digpro submit train ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("train")
