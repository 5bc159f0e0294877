r"""Assign images to the clusters of a trained model and score them against their classes, on a Ray cluster.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/evaluate.py s3://bucket/runs/cifar10-0123abcd --data s3://bucket/others --out s3://bucket/assigned

Paths must have the same meaning on every node: URIs, or a folder that all nodes mount.
`digpro submit evaluate ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("evaluate")
