r"""Send a run's waiting records to MLflow, from a Ray cluster that can reach the server.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/deliver.py s3://bucket/runs/photos-0123abcd --uri http://mlflow:5000

Status FAILED where some still wait. Paths must have the same meaning on every node: URIs, or a folder that all nodes
mount. `digpro submit deliver ...` does the same, and checks the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("deliver")
