"""Real runs on Ray: what one leaves, and that kills do not change it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
from mlflow import MlflowClient

from pipeline.config import RunConfig, load_config
from pipeline.training.checkpoint import newest_in
from pipeline.training.trainer import train

pytestmark = pytest.mark.slow

EPOCHS, STEPS = 3, 14
SETTINGS = [
    f"optim.epochs={EPOCHS}",
    "optim.warmup_epochs=1",
    "model.projector_hidden=64",
    "model.predictor_hidden=64",
    "model.feature_size=32",
    "estep.restarts=3",
    "checkpoint.every_epochs=1",
    "checkpoint.every_steps=5",
]


def settings(folder: Path, *more: str) -> list[str]:
    """Overrides of a small digits run that keeps everything below a folder."""
    return [*SETTINGS, f"storage={folder}/runs", f"data.path={folder}/digits", *more]


@pytest.fixture(scope="module", autouse=True)
def ray_stops() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """An uninterrupted run of two workers."""
    return run(folder, "name=whole")


def run(folder: Path, *more: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    return train(load_config("digits", settings(folder, *more)), say=say)


def outcome(summary: dict[str, Any]) -> tuple[list[dict[str, float]], list[int]]:
    """History without times, and all pseudo-labels."""
    values = newest_in(summary["folder"])
    assert values is not None
    timeless = [{key: value for key, value in page.items() if "second" not in key} for page in values["history"]]
    return timeless, values["labels"].tolist()


def test_a_run_leaves_scores_pictures_assignments_and_ledger(whole: dict[str, Any]) -> None:
    assert whole["epochs"] == EPOCHS
    assert 0.3 < whole["scores"]["acc"] < 1
    assert whole["last_epoch"]["group_rank_spread"] == 0
    assert set(whole["seconds"]) == {
        "first_batch", "batch_wait", "step", "estep", "evaluate", "checkpoint", "epoch",
    }  # fmt: skip
    assert whole["seconds"]["step"] > 0
    for path in (Path(whole["outputs"][name]) for name in ("summary", "clusters", "curves", "assignments")):
        assert path.stat().st_size > 1000, path
    table = pq.read_table(whole["outputs"]["assignments"])
    assert table.column_names == ["index", "cluster", "label"]
    assert table.column("index").to_pylist() == list(range(1797))
    assert table.column("cluster").to_pylist() == outcome(whole)[1]


def test_mlflow_holds_the_run_its_metrics_and_its_model(whole: dict[str, Any]) -> None:
    client = MlflowClient(whole["mlflow"]["uri"])
    record = client.get_run(whole["mlflow"]["run_id"])
    assert record.info.status == "FINISHED"
    assert record.data.params["optim.epochs"] == str(EPOCHS)
    assert record.data.metrics["acc"] == pytest.approx(whole["scores"]["acc"])
    assert [m.step for m in client.get_metric_history(record.info.run_id, "loss")] == [1, 2, 3]
    names = {artifact.path for artifact in client.list_artifacts(record.info.run_id)}
    assert {"clusters.png", "curves.png", "assignments.parquet", "model"} <= names


def test_a_finished_run_is_not_run_again(folder: Path, whole: dict[str, Any]) -> None:
    said: list[str] = []
    assert run(folder, "name=whole", say=said.append) == whole
    assert "already finished" in said[0]


def train_workers(family: list[psutil.Process]) -> list[psutil.Process]:
    """The Ray Train workers among processes, the ones that are gone left out."""
    found = []
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_a_worker() -> None:
    train_workers(psutil.Process().children(recursive=True))[0].kill()


def when_saved(run_folder: Path, checkpoints: int, act: Callable[[], None]) -> threading.Thread:
    """A thread that acts once a run has registered so many steps: when that many checkpoints have ever been there."""

    def watch() -> None:
        seen: set[str] = set()
        for _ in range(8000):
            seen |= {path.name for path in run_folder.glob("checkpoint_2*")}
            if len(seen) >= checkpoints:
                time.sleep(0.5)  # Ray Train registers a checkpoint at its next look, 0.2 s apart
                return act()
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_killing_a_worker_in_mid_epoch_changes_nothing(folder: Path, whole: dict[str, Any]) -> None:
    said: list[str] = []
    thread = when_saved(folder / "runs" / "hurt", 3, kill_a_worker)
    summary = run(folder, "name=hurt", say=said.append)
    thread.join()
    assert any(line.startswith("resumed after epoch") for line in said)
    assert outcome(summary) == outcome(whole)


def test_killing_everything_and_running_the_command_again_changes_nothing(folder: Path, whole: dict[str, Any]) -> None:
    arguments = [argument for value in settings(folder, "name=again") for argument in ("--set", value)]
    command = [sys.executable, "-m", "pipeline.cli", "train", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(command, start_new_session=True, env=environment, stdout=subprocess.DEVNULL)
    family: list[psutil.Process] = []

    def kill() -> None:
        family.extend(psutil.Process(process.pid).children(recursive=True))
        process.send_signal(signal.SIGKILL)

    when_saved(folder / "runs" / "again", 4, kill).join()
    assert process.wait(10) == -signal.SIGKILL
    _, alive = psutil.wait_procs(train_workers(family), timeout=40)  # they end when their driver is gone
    assert not alive, alive
    for process_left in psutil.wait_procs(family, timeout=1)[1]:  # Ray's agents take minutes to notice
        process_left.kill()
    assert not (folder / "runs" / "again" / "summary.json").exists()
    said: list[str] = []
    assert outcome(run(folder, "name=again", say=said.append)) == outcome(whole)
    assert any(line.startswith("resumed after epoch") for line in said)


def test_one_worker_starts_as_two_start(folder: Path, whole: dict[str, Any]) -> None:
    """Equality is tested in float64 without Ray: in float32 rounding grows, as young features are nearly all alike."""
    history, expected = outcome(run(folder, "name=alone", "resources.workers=1"))[0], outcome(whole)[0]
    assert history[0]["inertia"] == pytest.approx(expected[0]["inertia"], rel=1e-5)
    assert history[1]["loss_instance"] == pytest.approx(expected[1]["loss_instance"], rel=1e-3)
    assert history[1]["loss"] == pytest.approx(expected[1]["loss"], rel=5e-3)


@pytest.fixture(scope="module")
def streamed(folder: Path) -> dict[str, Any]:
    return run(folder, "name=streamed", "data.mode=streaming")


def test_streaming_learns_from_every_image(streamed: dict[str, Any], whole: dict[str, Any]) -> None:
    history, labels = outcome(streamed)
    assert len(labels) == 1797
    assert history[0]["inertia"] == pytest.approx(outcome(whole)[0][0]["inertia"], rel=1e-5)  # the same E-step
    assert history[-1]["acc"] > history[0]["acc"] + 0.2


def test_a_streaming_run_that_lost_a_worker_repeats_its_order(folder: Path, streamed: dict[str, Any]) -> None:
    thread = when_saved(folder / "runs" / "streamhurt", 4, kill_a_worker)
    summary = run(folder, "name=streamhurt", "data.mode=streaming")
    thread.join()
    assert outcome(summary) == outcome(streamed)


def test_the_configuration_of_a_run_is_kept_with_it(whole: dict[str, Any]) -> None:
    config = RunConfig.model_validate(whole["config"])
    assert config.optim.epochs == EPOCHS
    assert Path(config.data.path).is_absolute()
