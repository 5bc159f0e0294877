r"""Sort images into one folder per cluster, on a Ray cluster that can reach the storage.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/sort.py s3://bucket/runs/photos-0123abcd s3://bucket/sorted --top 100

Paths must have the same meaning on every node: URIs, or a folder that all nodes mount.
`digpro submit sort ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("sort")
