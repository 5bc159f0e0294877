r"""Assign any images to the clusters of a trained model, on all GPUs or CPUs of a Ray cluster.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/assign.py s3://bucket/runs/photos-0123abcd imagefolder:s3://bucket/photos s3://bucket/assigned

Paths must have the same meaning on every node: URIs, or a folder that all nodes mount. Submit the same command again to
resume a killed one. `digpro submit assign ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("assign")
