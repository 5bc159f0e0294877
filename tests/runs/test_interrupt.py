"""Ctrl-C and SIGTERM in training: a last checkpoint, MLflow's KILLED, one line, and a resume behind the last step."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.data.ingest import ingest
from pipeline.training.checkpoint import newest_in
from pipeline.training.saving import URGENT_STEPS
from tests.helpers.runs import ONE_THREAD, settings, start

RARE = ["checkpoint.every_epochs=100", "checkpoint.every_steps=null", "optim.epochs=200"]  # no other save is due


@pytest.mark.slow
def test_an_interrupted_run_saves_where_it_stands(tmp_path: Path) -> None:
    log = tmp_path / "log"
    ingest("digits", f"{tmp_path}/digits")  # sooner without Ray
    arguments = settings(tmp_path, "name=stopped", *RARE, *ONE_THREAD, "tracking.system_metrics=false")
    process = start(arguments, log)
    deadline = time.monotonic() + 180
    while log.read_text().count("\nepoch ") < 2:  # the first line is of epoch 0
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    lines = log.read_text().splitlines()
    assert lines[-2].startswith("saving a last checkpoint")
    assert lines[-1] == "interrupted by SIGTERM; run the same command again to continue"
    assert not any("Traceback" in line or line.startswith("***") for line in lines)
    values = newest_in(str(tmp_path / "runs" / "stopped"))
    assert values is not None
    assert values["epoch"] >= 1
    assert values["step"] in (0, URGENT_STEPS)  # workers are asked every so many of 14 steps, and after an epoch
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name == "digpro"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert not (tmp_path / "runs" / "stopped" / "lease.json").exists()
