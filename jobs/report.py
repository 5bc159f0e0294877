r"""Rewrite the atlas of a run on a Ray cluster.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/report.py s3://bucket/runs/photos-0123abcd

Paths must have the same meaning on every node: URIs, or a folder that all nodes mount.
`digpro submit report ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("report")
