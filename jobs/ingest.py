r"""Convert images to shards, on all CPUs of a Ray cluster.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/ingest.py imagefolder:/mnt/photos s3://bucket/photos

The source must be readable from every node. Submit the same command again to resume a killed ingest.
`digpro submit ingest ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("ingest")
