r"""Give names to the clusters of a run, on a Ray cluster, if only the cluster can write to its storage.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/label.py s3://bucket/runs/photos-0123abcd 3=truck 7=truck

Paths must have the same meaning on every node: URIs, or a folder that all nodes mount.
`digpro submit label ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("label")
