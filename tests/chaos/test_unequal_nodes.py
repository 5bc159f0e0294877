"""Clusters of unequal nodes: a head without GPUs, and nodes of other sizes whose GPUs are names only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from pipeline.runs.assign import assign_images
from tests.chaos.test_nodes import Driver, cluster_with_head
from tests.helpers.fake_gpu_nodes import patch_devices

pytestmark = pytest.mark.chaos

FROZEN = [
    "model.encoder=python:tests.helpers.backbones:with_input",
    "model.freeze=true",
    "views.size=null",
    "views.cached=2",
    "data.image_size=null",
    "optim.epochs=2",
    "resources.workers=2",
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head of 4 CPUs without a GPU; a test adds nodes."""
    patch_devices(monkeypatch)
    yield from cluster_with_head(monkeypatch, num_cpus=4)


def hosts(*classes: str) -> set[str]:
    """The nodes that actors of these classes are or were on."""
    return {actor.node_id for name in classes for actor in list_actors(filters=[("class_name", "=", name)], limit=1000)}


def test_gpu_workers_and_pools_leave_a_head_without_gpus_alone(cluster: Cluster, tmp_path: Path) -> None:
    """By the total, 12 CPUs, a worker would get 5, which no node has."""
    gpus = [cluster.add_node(num_cpus=3, num_gpus=1), cluster.add_node(num_cpus=5, num_gpus=1)]
    driver = Driver(tmp_path, "name=unequal", *FROZEN)
    driver.join(900)  # on a busy machine
    summary = driver.result()
    assert hosts("RayTrainWorker") == {node.node_id for node in gpus}
    assigned = assign_images(summary["folder"], "digits", str(tmp_path / "assigned"), echo=driver.lines.append)
    assert assigned["images"] == 1797
    assert cluster.head_node.node_id not in hosts(
        "RayTrainWorker", "MapWorker(Map(Assigner))", "MapWorker(Map(CacheWriter))"
    )
