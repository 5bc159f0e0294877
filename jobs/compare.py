r"""Compare runs on the same images, on a Ray cluster that can reach the storage.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/compare.py s3://bucket/runs/seed-0 s3://bucket/runs/seed-1 --out s3://bucket/comparison

Paths must have the same meaning on every node: URIs, or a folder that all nodes mount.
`digpro submit compare ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("compare")
