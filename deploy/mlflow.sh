#!/bin/sh
# The MLflow server of a cluster, on the one address that is given: sh deploy/mlflow.sh ADDRESS
# It has no password: whoever reaches the address can read and write all records.
# The records are in SQLite on this machine's own disk, because database files on network folders get damaged; the
# runs' files are in the storage that all machines share.
export MLFLOW_DISABLE_TELEMETRY=1
exec mlflow server --host "$1" --port 5000 --workers 1 \
    --backend-store-uri "sqlite:///$HOME/mlflow.db" --artifacts-destination "$DIGPRO_STORAGE/mlflow"
