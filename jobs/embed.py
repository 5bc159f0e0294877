r"""Cache the features of a frozen backbone, on all GPUs or CPUs of a Ray cluster.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/embed.py s3://bucket/photos s3://bucket/features --preset photos

Paths must have the same meaning on every node: URIs, or a folder that all nodes mount. Submit the same command again to
resume a killed one; `train` with the same settings and `data.features=s3://bucket/features` finds the cache.
`digpro submit embed ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("embed")
