r"""Estimate the number of clusters, on a Ray cluster.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/sweep_k.py s3://bucket/runs/photos-0123abcd --from 5 --to 50

Paths must have the same meaning on every node: URIs, or a folder that all nodes mount. Submit the same command again to
resume a killed one.
`digpro submit sweep-k ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("sweep-k")
