"""What is known to fail is refused before any worker starts, with the setting to change."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from pipeline.checks.capacity import worker_resources
from pipeline.checks.settings import check_settings
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError
from pipeline.storage import check_writable
from tests.helpers.manifests import manifest


def config(*overrides: str) -> RunConfig:
    return load_config("digits", list(overrides))


def cluster(monkeypatch: pytest.MonkeyPatch, **resources: float) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)


def test_storage_is_probed_and_left_clean(tmp_path: Path) -> None:
    check_writable(str(tmp_path / "new" / "runs"))
    assert list((tmp_path / "new" / "runs").iterdir()) == []


def test_storage_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"storage='.*file/runs' cannot be written \(.*\); set storage to"):
        check_writable(str(tmp_path / "file" / "runs"))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_run_that_fits_passes() -> None:
    check_settings(config("optim.batch_size=8", "resources.workers=3"), manifest(100))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method.num_clusters=101"], r"num_clusters=101 exceeds the 100 images"),
        (
            ["method.bank_size=5", "method.num_groups=null"],
            r"bank_size=5 is less than the 10 groups.*raise it to several times 10",
        ),
        (["method.bank_size=30", "method.num_groups=40"], r"bank_size=30 is less than the 40 groups"),
        (["optim.batch_size=101"], r"batch_size=101 exceeds the 100 images"),
        (["optim.batch_size=7", "resources.workers=4"], r"batch_size=7 leaves less than 2 images to each of 4 workers"),
        (
            ["optim.batch_size=8", "resources.workers=3", "data.mode=streaming"],
            r"batch_size=8 does not divide by resources\.workers=3.*take 6, or set data\.mode=resident",
        ),
    ],
)
def test_numbers_that_cannot_go_together_are_named(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_settings(config("optim.batch_size=32", *overrides), manifest(100))


@pytest.mark.parametrize(
    ("cpus", "workers", "share"), [(2, 1, 1.0), (2, 2, 0.5), (4, 2, 1.0), (16, 2, 7.0), (2, 4, 0.2), (1, 1, 0.1)]
)
def test_a_cpu_is_left_to_ray_data_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, cpus: float, workers: int, share: float
) -> None:
    cluster(monkeypatch, CPU=cpus)
    assert worker_resources(config(f"resources.workers={workers}"), "resident").cpus == share


def test_streaming_that_would_wait_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=2)
    full = config("resources.workers=2", "resources.cpus_per_worker=1")
    assert worker_resources(full, "resident").cpus == 1
    with pytest.raises(ConfigError) as caught:
        worker_resources(full, "streaming")
    for text in ("2 workers of 1 CPUs", "Ray Data", "2 CPUs", "resources.cpus_per_worker", "data.mode=resident"):
        assert text in str(caught.value)


def test_streaming_on_a_single_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=1)
    with pytest.raises(ConfigError, match=r"1 workers of 0\.1 CPUs and one for Ray Data.*data\.mode=resident"):
        worker_resources(config("resources.workers=1"), "streaming")


def test_more_cpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=4)
    with pytest.raises(ConfigError, match=r"3 workers of 2 CPUs take more than the cluster's 4 CPUs; lower") as caught:
        worker_resources(config("resources.workers=3", "resources.cpus_per_worker=2"), "resident")
    assert "Ray Data" not in str(caught.value)


@pytest.mark.parametrize(("there", "asked", "taken"), [(2, "auto", True), (1, "auto", False), (2, "false", False)])
def test_gpus_are_taken_when_there_are_enough(
    monkeypatch: pytest.MonkeyPatch, there: int, asked: str, taken: bool
) -> None:
    cluster(monkeypatch, CPU=8, GPU=there)
    assert worker_resources(config("resources.workers=2", f"resources.gpus={asked}"), "resident").gpus is taken


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=8, GPU=1)
    with pytest.raises(
        ConfigError, match=r"a GPU for each of 2 workers and the cluster has 1; lower resources\.workers"
    ):
        worker_resources(config("resources.workers=2", "resources.gpus=true"), "resident")


def test_streaming_takes_a_batch_that_every_number_of_workers_can_share() -> None:
    mine = ["data.mode=streaming", "resources.workers={min: 1, max: 4}"]
    check_settings(config("optim.batch_size=24", *mine), manifest(100))
    with pytest.raises(ConfigError, match=r"batch_size=32 does not divide by resources\.workers=3.*take 24"):
        check_settings(config("optim.batch_size=32", *mine), manifest(100))


def test_elastic_workers_take_whole_cpus_and_start_with_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=2)
    elastic = config("resources.workers={min: 1, max: 8}", "resources.resize_seconds=7")
    scaling = worker_resources(elastic, "resident").scaling(elastic.resources)
    assert scaling.num_workers == (1, 8)
    assert scaling.resources_per_worker == {"CPU": 1.0}
    assert scaling.elastic_resize_monitor_interval_s == 7
    with pytest.raises(ConfigError, match="8 workers of 1 CPUs and one for Ray Data"):  # growing would take the last
        worker_resources(elastic, "streaming")


def test_a_cluster_that_grows_is_asked_for_what_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=1)
    asked = config("resources.workers=8", "resources.autoscale=true", "resources.gpus=true")
    resources = worker_resources(asked, "streaming")
    assert (resources.cpus, resources.gpus) == (1.0, True)
    with pytest.raises(ConfigError, match=r"cannot tell whether GPUs will come; set resources\.gpus"):
        worker_resources(config("resources.autoscale=true"), "resident")
