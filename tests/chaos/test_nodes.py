"""Nodes that join, fail, or announce their preemption: several raylets on this machine, used as a user would."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from pipeline.cluster import QUIET
from pipeline.config.loading import load_config
from pipeline.runs.train import train
from tests.helpers.runs import outcome, settings

pytestmark = pytest.mark.chaos

MODES = {
    "resident": ["data.mode=resident"],
    # Windows of a third of the images: several a lane. A worker reads the first 24 MiB itself: 500 images of this size.
    "streaming": ["data.mode=streaming", "data.shuffle_window=600", "data.image_size=128"],
}
ELASTIC = ["resources.workers={min: 1, max: 2}", "resources.resize_seconds=2", "resources.max_failures=5"]
GROWING = ["resources.autoscale=true", "resources.gpus=false"]  # else a stream is refused that has no CPU for reading


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs, so that it never hosts a worker; each test adds nodes of one CPU."""
    yield from cluster_with_head(monkeypatch, num_cpus=0)


def cluster_with_head(monkeypatch: pytest.MonkeyPatch, num_cpus: int) -> Iterator[Cluster]:
    """A cluster that has a head alone, to which RAY_ADDRESS leads."""
    short = tempfile.mkdtemp(prefix="r")
    Path(short, "ray").mkdir()
    for name, value in {**QUIET, "RAY_TMPDIR": short, "RAY_AUTH_MODE": "disabled"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": num_cpus, "include_dashboard": True})
    monkeypatch.setenv("RAY_ADDRESS", started.address)
    yield started
    ray.shutdown()
    started.shutdown()


class Driver(threading.Thread):
    """A training run in a thread, because nodes can only be added from the main thread."""

    def __init__(self, folder: Path, *more: str) -> None:
        super().__init__(daemon=True)
        self.config = load_config("digits", settings(folder, *more))
        self.lines: list[str] = []
        self.summary: dict[str, Any] | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.summary = train(self.config, echo=self.lines.append)
        except BaseException as error:
            self.error = error

    def wait_until(self, condition: Callable[[], bool], seconds: float = 180) -> None:
        """Wait for a condition; fails when the run ends first."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.is_alive(), (self.error, self.lines)
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.1)

    def resume_lines(self) -> list[str]:
        """The lines that report a resume."""
        return [line for line in self.lines if line.startswith("resumed")]

    def count_checkpoints(self) -> int:
        """The number of checkpoints that exist now."""
        return len(list(Path(self.config.storage, str(self.config.name)).glob("checkpoint_2*")))

    def result(self) -> dict[str, Any]:
        """The summary of the finished run."""
        self.join(300)
        assert self.error is None, (self.error, self.lines)
        assert self.summary is not None, self.lines
        return self.summary


def nodes_of_workers() -> set[str]:
    """The nodes that host a training worker."""
    actors = list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
    return {actor.node_id for actor in actors}


@pytest.mark.parametrize("mode", MODES)
def test_losing_a_node_does_not_change_the_result(cluster: Cluster, tmp_path: Path, mode: str) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    mine = ["optim.epochs=6", "resources.workers=2", "resources.cpus_per_worker=1", *MODES[mode]]
    uninterrupted = Driver(tmp_path, "name=uninterrupted", *mine).result()
    interrupted = Driver(tmp_path, "name=interrupted", *mine)
    interrupted.wait_until(lambda: interrupted.count_checkpoints() >= 2)
    hosts = nodes_of_workers()
    cluster.remove_node(next(node for node in nodes if node.node_id in hosts), allow_graceful=False)
    summary = interrupted.result()
    assert interrupted.resume_lines()
    assert outcome(summary["folder"]) == outcome(uninterrupted["folder"])


@pytest.mark.parametrize("mode", MODES)
def test_the_number_of_workers_follows_the_cluster(cluster: Cluster, tmp_path: Path, mode: str) -> None:
    """In float64, in which one worker and two give equal labels."""
    cluster.add_node(num_cpus=1)
    mine = ["optim.epochs=12", "optim.precision=float64", *MODES[mode]]
    driver = Driver(tmp_path, "name=elastic", *mine, *ELASTIC, *GROWING)
    driver.wait_until(lambda: driver.count_checkpoints() >= 2)
    guest = cluster.add_node(num_cpus=1)
    driver.wait_until(lambda: any(line.endswith("on 2 workers") for line in driver.resume_lines()))
    time.sleep(4)
    cluster.remove_node(guest, allow_graceful=False)
    driver.wait_until(lambda: driver.resume_lines()[-1].endswith("on 1 worker"))
    history, labels = outcome(driver.result()["folder"])
    assert len(history) == 13
    steady = Driver(tmp_path, "name=steady", *mine, "resources.workers=1", *GROWING).result()
    expected, expected_labels = outcome(steady["folder"])
    assert labels == expected_labels
    for metrics, other in zip(history[1:], expected[1:], strict=True):  # losses of epochs that both groups shared, too
        for name in ("loss", "loss_instance", "loss_prototype", "loss_group"):
            assert metrics[name] == pytest.approx(other[name], rel=1e-5), (metrics["epoch"], name)


def test_an_announced_preemption_triggers_a_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    """No other checkpoint is due before the run's end, so the run can only resume from the one saved for this.

    Workers agree to save it after every tenth step, and at the end of an epoch of 14.
    """
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    mine = ["optim.epochs=40", "resources.workers=2", "resources.cpus_per_worker=1", "resources.max_failures=0"]
    rare = ["checkpoint.every_epochs=100", "checkpoint.every_steps=null"]
    driver = Driver(tmp_path, "name=drained", *mine, *rare)
    driver.wait_until(
        lambda: any(line.startswith("epoch") and not line.startswith("epoch  0") for line in driver.lines)
    )
    hosts = nodes_of_workers()
    leaving = next(node for node in nodes if node.node_id in hosts)
    announce_preemption(cluster, leaving.node_id, seconds=15)
    driver.wait_until(lambda: bool(driver.resume_lines()))
    cluster.remove_node(leaving, allow_graceful=False)
    summary = driver.result()
    assert re.fullmatch(r"resumed after epoch [1-9]\d*, step (0|10), on 2 workers", driver.resume_lines()[0])
    steady = Driver(tmp_path, "name=steady", *mine, *rare).result()
    assert outcome(summary["folder"]) == outcome(steady["folder"])


def announce_preemption(cluster: Cluster, node: str, seconds: int) -> None:
    """Announce the preemption of a node, as a cloud does for a spot machine."""
    ray_command = str(Path(sys.executable).with_name("ray"))
    arguments = ["drain-node", "--address", cluster.address, "--node-id", node]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds"]
    subprocess.run([ray_command, *arguments, *reason, str(seconds)], check=True, stdout=subprocess.DEVNULL)
