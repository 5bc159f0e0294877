"""What a cluster has room for: workers of a run, and trials of a search; the sums, without Ray."""

from __future__ import annotations

import pytest
import ray

from pipeline.checks.capacity import TRIAL_CPUS, Capacity, search_capacity, worker_resources
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError

LAPTOP = [{"CPU": 2.0}]
SERVER = [{"CPU": 16.0}]
GPUS = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]


def config(workers: object = 2, **resources: object) -> RunConfig:
    settings = {"workers": workers, **resources}
    return load_config("digits", [f"resources.{key}={value}" for key, value in settings.items()])


@pytest.mark.parametrize(
    ("resources", "mode", "nodes", "trials", "wanted", "expected"),
    [
        ({}, "resident", LAPTOP, 16, None, Capacity(1, 0.4, False)),  # 0.1 + 2 * 0.4, and one for Ray Data
        ({}, "streaming", LAPTOP, 16, None, Capacity(1, 0.4, False)),
        ({}, "resident", LAPTOP, 16, 2, Capacity(2, 0.2, False)),
        ({"workers": 1, "cpus_per_worker": 0.2}, "resident", LAPTOP, 16, None, Capacity(3, 0.2, False)),
        ({"workers": 1, "cpus_per_worker": 0.2}, "streaming", LAPTOP, 16, None, Capacity(1, 0.2, False)),
        ({}, "resident", SERVER, 16, None, Capacity(7, 1.0, False)),  # 7 * 2.1 + 1
        ({}, "streaming", SERVER, 16, None, Capacity(5, 1.0, False)),  # 5 * 3.1
        ({}, "resident", SERVER, 3, None, Capacity(3, 2.0, False)),  # few trials share all there is
        ({}, "resident", GPUS, 16, None, Capacity(4, 3.0, True)),
        ({"gpus": False}, "resident", GPUS, 16, None, Capacity(14, 1.0, False)),
        ({"workers": 16}, "resident", GPUS, 16, None, Capacity(1, 1.0, False)),  # auto: not enough GPUs
        ({"workers": "{min: 1, max: 4}"}, "resident", GPUS, 16, None, Capacity(2, 3.0, True)),  # the most it may have
        ({"workers": "{min: 2, max: 16}"}, "resident", GPUS, 16, None, Capacity(1, 3.0, True)),  # 8 GPUs, one trial
        ({"autoscale": True, "gpus": True}, "resident", LAPTOP, 16, 8, Capacity(8, 1.0, True)),
    ],
)
def test_as_many_trials_as_fit(
    resources: dict[str, object],
    mode: str,
    nodes: list[dict[str, float]],
    trials: int,
    wanted: int | None,
    expected: Capacity,
) -> None:
    assert search_capacity(config(**resources), mode, nodes, trials, wanted) == expected


@pytest.mark.parametrize(("devices", "taken"), [(1.0, False), (2.0, True), (8.0, True)])
def test_a_run_and_a_search_take_gpus_by_one_rule(monkeypatch: pytest.MonkeyPatch, devices: float, taken: bool) -> None:
    """As soon as the fewest workers can have one each."""
    elastic, cluster = config("{min: 2, max: 4}"), {"CPU": 32.0, "GPU": devices}
    monkeypatch.setattr(ray, "cluster_resources", lambda: cluster)
    assert worker_resources(elastic, "resident").gpus is taken
    assert search_capacity(elastic, "resident", [cluster], 1).gpus is taken


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("cpus", [2, 3, 8, 31, 64])
def test_nothing_is_promised_twice(mode: str, workers: int, cpus: int) -> None:
    """And one trial more would not have fitted."""
    room = search_capacity(config(workers), mode, [{"CPU": float(cpus)}], 1000)

    def taken(trials: int) -> float:
        return trials * (TRIAL_CPUS + workers * room.cpus) + (trials if mode == "streaming" else 1)

    assert taken(room.trials) <= cpus + 1e-6
    assert room.cpus < 1 or taken(room.trials + 1) > cpus


def test_a_worker_does_not_lie_on_two_nodes() -> None:
    halves = [{"CPU": 3.0}] * 4
    assert search_capacity(config(1, cpus_per_worker=2), "resident", halves, 16).trials == 4  # and not 5


@pytest.mark.parametrize(
    ("resources", "wanted", "said"),
    [
        ({"cpus_per_worker": 1}, None, r"1 trial of 2 workers with 1 CPUs each, and 1.1 CPUs .* a cluster of 2 CPUs"),
        ({"workers": 1}, 9, r"9 trials of 1 workers .* lower resources.workers, .* or --concurrent"),
        ({"gpus": True}, None, r"1 trial of 2 workers with 0.1 CPUs and a GPU each"),
        ({"autoscale": True, "gpus": True}, None, r"--concurrent N"),
        ({"autoscale": True}, 2, r"set resources.gpus=true or false"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_sum(resources: dict[str, object], wanted: int | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        search_capacity(config(**resources), "resident", LAPTOP, 16, wanted)


def overridden(*overrides: str) -> RunConfig:
    return load_config("digits", list(overrides))


def cluster(monkeypatch: pytest.MonkeyPatch, **resources: float) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)


@pytest.mark.parametrize(
    ("cpus", "workers", "share"), [(2, 1, 1.0), (2, 2, 0.5), (4, 2, 1.0), (16, 2, 7.0), (2, 4, 0.2), (1, 1, 0.1)]
)
def test_a_cpu_is_left_to_ray_data_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, cpus: float, workers: int, share: float
) -> None:
    cluster(monkeypatch, CPU=cpus)
    assert worker_resources(overridden(f"resources.workers={workers}"), "resident").cpus == share


def test_streaming_that_would_wait_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=2)
    full = overridden("resources.workers=2", "resources.cpus_per_worker=1")
    assert worker_resources(full, "resident").cpus == 1
    with pytest.raises(ConfigError) as caught:
        worker_resources(full, "streaming")
    for text in ("2 workers of 1 CPUs", "one for reading", "2 CPUs", "resources.cpus_per_worker", "data.mode=resident"):
        assert text in str(caught.value)


def test_streaming_on_a_single_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=1)
    with pytest.raises(ConfigError, match=r"1 workers of 0\.1 CPUs and one for reading.*data\.mode=resident"):
        worker_resources(overridden("resources.workers=1"), "streaming")


def test_more_cpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=4)
    with pytest.raises(ConfigError, match=r"3 workers of 2 CPUs take more than the cluster's 4 CPUs; lower") as caught:
        worker_resources(overridden("resources.workers=3", "resources.cpus_per_worker=2"), "resident")
    assert "reading" not in str(caught.value)


@pytest.mark.parametrize(("there", "asked", "taken"), [(2, "auto", True), (1, "auto", False), (2, "false", False)])
def test_gpus_are_taken_when_there_are_enough(
    monkeypatch: pytest.MonkeyPatch, there: int, asked: str, taken: bool
) -> None:
    cluster(monkeypatch, CPU=8, GPU=there)
    assert worker_resources(overridden("resources.workers=2", f"resources.gpus={asked}"), "resident").gpus is taken


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=8, GPU=1)
    with pytest.raises(
        ConfigError, match=r"a GPU for each of 2 workers and the cluster has 1; lower resources\.workers"
    ):
        worker_resources(overridden("resources.workers=2", "resources.gpus=true"), "resident")


def test_elastic_workers_take_whole_cpus_and_start_with_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=2)
    elastic = overridden("resources.workers={min: 1, max: 8}", "resources.resize_seconds=7")
    scaling = worker_resources(elastic, "resident").scaling(elastic.resources)
    assert scaling.num_workers == (1, 8)
    assert scaling.resources_per_worker == {"CPU": 1.0}
    assert scaling.elastic_resize_monitor_interval_s == 7
    with pytest.raises(ConfigError, match="8 workers of 1 CPUs and one for reading"):  # growing would take the last
        worker_resources(elastic, "streaming")


def test_workers_on_gpus_leave_the_cpus_to_their_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=32, GPU=2)
    assert worker_resources(overridden("resources.workers=2"), "streaming").cpus == 1
    assert worker_resources(overridden("resources.workers=2"), "resident").cpus == 15


def test_a_cluster_that_grows_is_asked_for_what_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=1)
    asked = overridden("resources.workers=8", "resources.autoscale=true", "resources.gpus=true")
    resources = worker_resources(asked, "streaming")
    assert (resources.cpus, resources.gpus) == (1.0, True)
    with pytest.raises(ConfigError, match=r"cannot tell whether GPUs will come; set resources\.gpus"):
        worker_resources(overridden("resources.autoscale=true"), "resident")
