#!/bin/sh
# Start the MLflow server of a cluster on the given address only: sh deploy/mlflow.sh ADDRESS
# It has no password: anyone who can reach the address can read and write all records.
# The records are in SQLite on this machine's local disk, because database files on network folders get corrupted. The
# artifacts of the runs are in the shared storage.
# By default MLflow refuses requests to other addresses than loopback and private ones, with status 403; with this list
# it accepts what it is asked by: the given address, and the browser's end of a tunnel.
export MLFLOW_DISABLE_TELEMETRY=1
exec mlflow server --host "$1" --port 5000 --workers 1 \
    --allowed-hosts "$1:5000,127.0.0.1:5000,localhost:5000" \
    --backend-store-uri "sqlite:///$HOME/mlflow.db" --artifacts-destination "$DIGPRO_STORAGE/mlflow"
