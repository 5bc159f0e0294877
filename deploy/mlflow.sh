#!/bin/sh
# Start the MLflow server of a cluster on the given address only: sh deploy/mlflow.sh ADDRESS
# It has no password: anyone who can reach the address can read and write all records.
# The records are in SQLite on this machine's local disk, because database files on network folders get corrupted. The
# artifacts of the runs are in the shared storage.
export MLFLOW_DISABLE_TELEMETRY=1
exec mlflow server --host "$1" --port 5000 --workers 1 \
    --backend-store-uri "sqlite:///$HOME/mlflow.db" --artifacts-destination "$DIGPRO_STORAGE/mlflow"
