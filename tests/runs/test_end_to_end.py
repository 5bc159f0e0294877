"""Real runs on Ray: what one leaves, and that kills do not change it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor

from pipeline.collectives import rank
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.data.loader import Batch
from pipeline.data.shards import read_manifest
from pipeline.errors import ConfigError, RunFailed
from pipeline.plan import make_plan
from pipeline.runs.assign import assign_images
from pipeline.runs.evaluate import evaluate
from pipeline.runs.names import set_names
from pipeline.runs.start_from import checkpoint_to_start_from, settings_of
from pipeline.runs.train import train
from pipeline.training import fit, mstep, worker
from pipeline.training.checkpoint import newest_in
from pipeline.training.run import Run
from tests.helpers.runs import (
    EPOCHS,
    ONE_THREAD,
    TWO_WORKERS,
    end,
    family,
    outcome,
    outcome_in_process,
    settings,
    start,
    train_workers,
)
from tests.helpers.s3 import S3Server, for_seconds, ray_with_s3, throttle
from tests.helpers.small_run import resident_inputs

pytestmark = pytest.mark.slow
INSIDE = r"resumed after epoch \d+, step [1-9]"  # an epoch
REGISTERED = 0.5  # seconds in which Ray Train surely registers a checkpoint: it looks every 0.2 s


@pytest.fixture(scope="module", autouse=True)
def store() -> Iterator[S3Server]:
    with ray_with_s3() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """An uninterrupted run of two workers."""
    return run(folder, "name=whole")


def run(folder: Path, *more: str, echo: Callable[[str], None] = print) -> dict[str, Any]:
    return train(load_config("digits", settings(folder, TWO_WORKERS, *more)), echo=echo)


def test_a_run_leaves_scores_pictures_assignments_and_ledger(whole: dict[str, Any]) -> None:
    assert whole["epochs"] == EPOCHS
    assert 0.3 < whole["scores"]["acc"] < 1
    assert whole["last_epoch"]["group_rank_spread"] == 0
    assert whole["alarms"] == whole["rollbacks"] == []
    assert set(whole["seconds"]) == {
        "first_batch", "batch_wait", "step", "estep", "evaluate", "monitor", "checkpoint", "epoch",
    }  # fmt: skip
    assert whole["seconds"]["step"] > 0
    for name in ("summary", "atlas", "clusters", "curves", "assignments", "embedding"):
        assert Path(whole["outputs"][name]).stat().st_size > 1000, name
    table = pq.read_table(whole["outputs"]["assignments"])
    columns = ["index", "path", "cluster", "similarity", "runner_up", "margin", "outlier", "label"]
    assert table.column_names == columns
    assert table.column("index").to_pylist() == list(range(1797))
    assert table.column("cluster").to_pylist() == outcome(whole["folder"])[1]


def test_mlflow_holds_the_run_its_metrics_and_its_model(whole: dict[str, Any]) -> None:
    client = MlflowClient(whole["mlflow"]["uri"])
    record = client.get_run(whole["mlflow"]["run_id"])
    assert record.info.status == "FINISHED"
    assert record.data.params["optim.epochs"] == str(EPOCHS)
    assert record.data.metrics["acc"] == pytest.approx(whole["scores"]["acc"])
    assert [m.step for m in client.get_metric_history(record.info.run_id, "loss")] == [1, 2, 3]
    names = {artifact.path for artifact in client.list_artifacts(record.info.run_id)}
    files = {"clusters.png", "curves.png", "assignments.parquet", "atlas.html", "embedding.parquet"}
    assert files <= names
    (model,) = client.search_logged_models([record.info.experiment_id], f"source_run_id = '{record.info.run_id}'")
    assert (model.name, str(model.status)) == ("model", "READY")


def test_a_finished_run_is_not_run_again(folder: Path, whole: dict[str, Any]) -> None:
    said: list[str] = []
    assert run(folder, "name=whole", echo=said.append) == whole
    assert "already finished" in said[0]


def kill_a_worker() -> None:
    train_workers(family(os.getpid()))[0].kill()


def when_saved(run_folder: Path, checkpoints: int, act: Callable[[], None]) -> threading.Thread:
    """A thread that acts once a run has registered so many steps: when that many checkpoints have ever been there."""

    def watch() -> None:
        seen: set[str] = set()
        for _ in range(8000):
            seen |= {path.name for path in run_folder.glob("checkpoint_2*")}
            if len(seen) >= checkpoints:
                time.sleep(REGISTERED)
                return act()
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.chaos  # CI kills a worker of a run that streams
@pytest.mark.usefixtures("without_artifacts")
def test_killing_a_worker_in_mid_epoch_changes_nothing(folder: Path, whole: dict[str, Any]) -> None:
    said: list[str] = []
    thread = when_saved(folder / "runs" / "hurt", 3, kill_a_worker)
    summary = run(folder, "name=hurt", echo=said.append)
    thread.join()
    assert any(line.startswith("resumed after epoch") for line in said)
    assert outcome(summary["folder"]) == outcome(whole["folder"])


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.chaos)])
def test_runs_live_in_a_bucket_too(folder: Path, whole: dict[str, Any], store: S3Server, *, killed: bool) -> None:
    """Images, checkpoints and results in S3, by URIs with options; the store throttles.

    Everything may have been killed before, once there was something to resume from. The same command continues.
    """
    store.empty()
    places = [f"storage={store.uri('/runs/')}", f"data.path={store.uri('/digits')}"]
    mine = ["name=afar", TWO_WORKERS, *places, f"tracking.uri=sqlite:///{folder}/afar-{killed}.db"]
    if killed:
        kill_everything(start(settings(folder, *mine)), lambda: checkpoints_in(store, "afar") >= 2)
    assert "runs/afar/summary.json" not in store.objects()
    said: list[str] = []

    def throttle_once_begun(line: str) -> None:
        said.append(line)
        if line.startswith("run afar:"):  # before that, a store that refuses ends the command at once
            store.fault = for_seconds(5, throttle)

    summary = run(folder, *mine, echo=throttle_once_begun)
    assert any(line.startswith("resumed after epoch") for line in said) == killed
    assert outcome(summary["folder"]) == outcome(whole["folder"])
    assert summary["folder"] == store.uri("/runs/afar")
    evaluated = evaluate(summary["folder"], store.uri("/digits"), store.uri("/assigned/"))
    assert evaluated["scores"]["acc"] == pytest.approx(summary["scores"]["acc"], abs=0.01)
    assert evaluated["outputs"]["summary"] == store.uri("/assigned/summary.json")
    keys = store.objects()
    assert {"runs/afar/summary.json", "runs/afar/clusters.png", "assigned/summary.json"} <= keys
    assert {key.split("/")[0] for key in keys} == {"runs", "digits", "assigned"}
    assert not [key for key in keys if ".probe-" in key or ".unfinished-" in key]


def checkpoints_in(store: S3Server, name: str) -> int:
    """Number of a run's checkpoints in a bucket."""
    return len({key.split("/")[2] for key in store.objects(f"runs/{name}/checkpoint_")})


def kill_everything(driver: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    """Kill a driver, its workers and the rest of its Ray cluster as soon as it is ready."""
    deadline = time.monotonic() + 300
    while not ready():
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(REGISTERED)
    cluster = family(driver.pid)
    driver.kill()
    assert driver.wait(10) == -signal.SIGKILL
    _, alive = psutil.wait_procs(train_workers(cluster), timeout=40)  # they end when their driver is gone
    assert not alive, alive
    end(cluster)  # Ray's agents take minutes to notice


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.chaos)])
@pytest.mark.usefixtures("without_artifacts")
def test_a_stream_ends_as_images_in_memory_do_also_after_a_kill(
    folder: Path, whole: dict[str, Any], workers: int
) -> None:
    """The window is smaller than the set; that of `whole` holds it, so that its order is another.

    In float64, since in float32 rounding grows, as young features are nearly all alike. The images are so large because
    a worker reads the first 24 MiB itself: 900 images; the rest comes from Ray Data.
    """
    mine = ["data.shuffle_window=1100", "data.image_size=96", "optim.precision=float64", "optim.epochs=2"]
    said: list[str] = []
    expected, same = outcome_in_process(settings(folder, *mine))
    name = f"streamhurt{workers}"
    thread = when_saved(folder / "runs" / name, 5, kill_a_worker)  # of the second epoch's step 5
    streamed = (f"name={name}", "data.mode=streaming", f"resources.workers={workers}")
    summary = run(folder, *streamed, *mine, echo=said.append)
    thread.join()
    assert any(re.match(INSIDE, line) for line in said)
    history, labels = outcome(summary["folder"])
    assert labels == same
    for epoch, other in zip(history, expected, strict=True):
        assert epoch.keys() - other.keys() == {"acc", "nmi", "ari"}  # in this process no classes are known
        assert {key: epoch[key] for key in other} == pytest.approx(other, rel=1e-5, abs=1e-7)
    assert labels != outcome(whole["folder"])[1]


def worker_with_ledger(ledger: Path, attempt: int, dies_at: int | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A worker function that keeps the images of its steps; rank 0 is killed before a step of the first epoch."""

    def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
        original = mstep.train_step

        def train_step(run: Run, batch: Batch) -> None:
            epoch, step = run.state.epochs_done, run.state.step
            if (epoch, step, rank()) == (0, dies_at, 0):
                os.kill(os.getpid(), signal.SIGKILL)
            torch.save(batch.index, ledger / f"{epoch}-{step}-{attempt}-{rank()}.pt")
            original(run, batch)

        mstep.train_step = train_step
        return worker.train_worker(settings)

    return train_worker


def ledger_of(ledger: Path, step: int) -> Tensor:
    """The images of a step of the first epoch as it was done last, in the order of the workers."""
    attempt = max(int(file.name.split("-")[2]) for file in ledger.glob(f"0-{step}-*"))
    return torch.cat([torch.load(file) for file in sorted(ledger.glob(f"0-{step}-{attempt}-*"))])


@pytest.mark.chaos
@pytest.mark.usefixtures("without_artifacts")
def test_a_stream_uses_each_image_once_through_two_kills_and_two_changes_of_the_workers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ["name=ledger", "data.mode=streaming", "data.shuffle_window=1100", "data.image_size=96"]
    said: list[str] = []
    for attempt, (workers, dies_at) in enumerate([(2, 8), (3, 12), (1, None)]):
        monkeypatch.setattr(fit, "train_worker", worker_with_ledger(tmp_path, attempt, dies_at))
        ends = contextlib.nullcontext() if dies_at is None else pytest.raises(RunFailed)
        with ends:
            run(folder, *mine, f"resources.workers={workers}", "resources.max_failures=0", echo=said.append)
    resumes = [line for line in said if line.startswith("resumed after")]
    assert resumes == ["resumed after epoch 0, step 5, on 3 workers", "resumed after epoch 0, step 10, on 1 worker"]
    config = load_config("digits", settings(folder, *mine))
    order = make_plan(config, read_manifest(config.data.path)).order
    inputs = resident_inputs(torch.zeros(1797, 1, 1, 3, dtype=torch.uint8), order, 128)
    used = torch.cat([ledger_of(tmp_path, step) for step in range(order.steps)])
    assert used.equal(torch.cat([batch.index for batch in inputs.epoch(0)]))
    assert len(used.unique()) == order.steps * order.batch_size


@pytest.mark.chaos  # CI has the kill of the plain stream, which has one run less to make
def test_a_stream_that_is_drawn_by_pseudo_label_repeats_its_draws_after_a_kill(folder: Path) -> None:
    """The kill falls into the second epoch, the first after the warm-up. For resident ones see test_checkpoint.py."""
    mine = ["optim.balance=1", "data.shuffle_window=1100", "data.image_size=96", "optim.precision=float64"]
    expected = run(folder, "name=balanced", *mine)
    said: list[str] = []
    thread = when_saved(folder / "runs" / "balancedhurt", 6, kill_a_worker)
    summary = run(folder, "name=balancedhurt", "data.mode=streaming", *mine, echo=said.append)
    thread.join()
    assert any(re.match(INSIDE, line) for line in said)
    assert outcome(summary["folder"])[1] == outcome(expected["folder"])[1]
    assert summary["epochs"] == EPOCHS


def test_a_finished_run_gives_its_scores_again(
    folder: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its folder, a second time without work, and by the model that MLflow has of it."""
    lines = list[str]()
    found = evaluate(whole["folder"])
    again = evaluate(whole["folder"], echo=lines.append)
    set_names(whole["folder"], ["0=9", "1=one"])
    labelled = evaluate(whole["folder"], echo=lines.append)
    names = pq.read_table(labelled["outputs"]["assignments"], columns=["cluster", "name"]).to_pydict()
    set_names(whole["folder"], ["0=", "1="])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole["mlflow"]["uri"])
    logged = assign_images(whole["mlflow"]["run_id"], str(folder / "digits"), str(tmp_path / "logged"))
    assert again == found
    assert lines == [
        f"{whole['folder']}/evaluation already holds the assignments of these images",
        f"{whole['folder']}/evaluation has earlier names of clusters; they are replaced",
    ]
    assert labelled["scores"] == found["scores"]
    assert [cluster["name"] for cluster in labelled["clusters"]] == ["9", "one", *[None] * 8]
    assert names["name"] == [{0: "9", 1: "one"}.get(cluster) for cluster in names["cluster"]]
    assert found["scores"] == pytest.approx(whole["scores"])
    assert found["images"] == 1797
    assert found["health"]["cluster_largest"] == whole["last_epoch"]["cluster_largest"]
    ours, theirs, of_mlflow = (
        pq.read_table(summary["outputs"]["assignments"]).sort_by("index") for summary in (found, whole, logged)
    )
    assert of_mlflow.column("cluster").to_pylist() == theirs.column("cluster").to_pylist()
    np.testing.assert_allclose(of_mlflow.column("similarity"), theirs.column("similarity"), atol=1e-3)
    for column in ("index", "path", "cluster", "runner_up", "label"):
        assert ours.column(column).to_pylist() == theirs.column(column).to_pylist()
    for column in ("similarity", "margin", "outlier"):
        np.testing.assert_allclose(ours.column(column), theirs.column(column), atol=1e-3)
    assert found["drift"] == pytest.approx({"sizes": 0, "similarity": 0, "outliers": 0}, abs=1e-5)
    assert json.loads(Path(found["outputs"]["summary"]).read_text()) == labelled


@pytest.mark.usefixtures("without_artifacts")
@pytest.mark.usefixtures("without_artifacts")
def test_a_run_begins_with_the_weights_of_another(whole: dict[str, Any]) -> None:
    """Its first E-step finds what the last one of the other found."""
    config, label = settings_of(whole["folder"], ["optim.epochs=1", *ONE_THREAD])
    plan = make_plan(config, read_manifest(config.data.path))
    assert Path(str(checkpoint_to_start_from(config, plan))).is_dir()

    wider = config.model_copy(update={"model": config.model.model_copy(update={"feature_size": 48})})
    with pytest.raises(
        ConfigError, match=r"do not fit: model\.feature_size was 32, is 48\. Give the settings of that run"
    ):
        checkpoint_to_start_from(wider, plan)

    second = train(config, label=label)
    assert second["folder"] != whole["folder"]
    values = newest_in(second["folder"])
    assert values is not None
    assert values["epoch"] == 1
    for name in ("inertia", "acc"):
        assert values["history"][0][name] == pytest.approx(whole["last_epoch"][name], rel=1e-5)
    assert values["history"][1]["acc"] != values["history"][0]["acc"]


def test_the_configuration_of_a_run_is_kept_with_it(whole: dict[str, Any]) -> None:
    config = RunConfig.model_validate(whole["config"])
    assert config.optim.epochs == EPOCHS
    assert Path(config.data.path).is_absolute()
