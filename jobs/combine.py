r"""Combine runs on the same images into one, on a Ray cluster that can reach the storage.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/combine.py s3://bucket/runs/seed-0 s3://bucket/runs/seed-1 --out s3://bucket/runs/consensus

Paths must have the same meaning on every node: URIs, or a folder that all nodes mount.
`digpro submit combine ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("combine")
