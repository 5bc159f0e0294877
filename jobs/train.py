r"""Train on a Ray cluster, or go on where an interrupted job stopped.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/train.py --preset cifar10 \
            --set data.path=s3://bucket/cifar10 --set storage=s3://bucket/runs --set tracking.uri=http://mlflow:5000 \
            --set "resources.workers={min: 2, max: 8}"

Paths must mean the same on every node: URIs, or a folder that all of them mount. Submitting the same line again is
always right: it goes on from the last checkpoint, and a finished run only shows its result.
`digpro submit train ...` does the same, after checks.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("train")
