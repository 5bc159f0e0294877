"""What a cluster has room for: workers of a run, and trials of a search; the sums, without Ray."""

from __future__ import annotations

import pytest

from pipeline.checks.capacity import Capacity, WorkerResources, search_capacity, worker_resources
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError

LAPTOP = [{"CPU": 2.0}]
SERVER = [{"CPU": 16.0}]
GPUS = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]
OURS = [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}]  # cluster.yaml with its nodes up


def config(workers: object = 2, **resources: object) -> RunConfig:
    settings = {"workers": workers, **resources}
    return load_config("digits", [f"resources.{key}={value}" for key, value in settings.items()])


@pytest.mark.parametrize(
    ("resources", "mode", "nodes", "trials", "wanted", "expected"),
    [
        ({}, "resident", LAPTOP, 16, None, Capacity(1, 0.5, False)),  # 2 * 0.5, and one for Ray Data
        ({}, "streaming", LAPTOP, 16, None, Capacity(1, 0.5, False)),
        ({}, "resident", LAPTOP, 16, 2, Capacity(2, 0.2, False)),
        ({"workers": 1, "cpus_per_worker": 0.2}, "resident", LAPTOP, 16, None, Capacity(5, 0.2, False)),
        ({"workers": 1, "cpus_per_worker": 0.2}, "streaming", LAPTOP, 16, None, Capacity(1, 0.2, False)),
        ({}, "resident", SERVER, 16, None, Capacity(7, 1.0, False)),  # 7 * 2 + 1
        ({}, "streaming", SERVER, 16, None, Capacity(5, 1.0, False)),  # 5 * 3
        ({}, "resident", SERVER, 3, None, Capacity(3, 2.0, False)),  # few trials share all there is
        ({}, "resident", GPUS, 16, None, Capacity(4, 3.0, True)),
        ({"gpus": False}, "resident", GPUS, 16, None, Capacity(15, 1.0, False)),
        ({"workers": 16}, "resident", GPUS, 16, None, Capacity(1, 1.0, False)),  # auto: not enough GPUs
        ({"workers": "{min: 1, max: 4}"}, "resident", GPUS, 16, None, Capacity(2, 3.0, True)),  # the most it may have
        ({"workers": "{min: 2, max: 16}"}, "resident", GPUS, 16, None, Capacity(1, 3.0, True)),  # 8 GPUs, one trial
        ({"autoscale": True, "gpus": True}, "resident", LAPTOP, 16, 8, Capacity(8, 1.0, True)),
        ({}, "resident", OURS, 16, None, Capacity(1, 3.0, True)),
        ({"workers": 1}, "resident", OURS, 16, None, Capacity(2, 3.0, True)),
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
def test_a_run_and_a_search_take_gpus_by_one_rule(devices: float, taken: bool) -> None:
    """As soon as the fewest workers can have one each."""
    elastic, cluster = config("{min: 2, max: 4}"), {"CPU": 32.0, "GPU": devices}
    assert worker_resources(elastic, "resident", [cluster]).gpus is taken
    assert search_capacity(elastic, "resident", [cluster], 1).gpus is taken


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("cpus", [2, 3, 8, 31, 64])
def test_nothing_is_promised_twice(mode: str, workers: int, cpus: int) -> None:
    """And one trial more would not have fitted."""
    room = search_capacity(config(workers), mode, [{"CPU": float(cpus)}], 1000)

    def taken(trials: int) -> float:
        return trials * workers * room.cpus + (trials if mode == "streaming" else 1)

    assert taken(room.trials) <= cpus + 1e-6
    assert room.cpus < 1 or taken(room.trials + 1) > cpus


def test_a_worker_does_not_lie_on_two_nodes() -> None:
    halves = [{"CPU": 3.0}] * 4
    assert search_capacity(config(1, cpus_per_worker=2), "resident", halves, 16).trials == 4  # and not 5


@pytest.mark.parametrize(
    ("resources", "wanted", "said"),
    [
        (
            {"cpus_per_worker": 1},
            None,
            r"1 trial of 2 workers with 1 CPUs each, plus 1 for .* \(1 of 2 CPUs\)",
        ),
        ({"workers": 1}, 12, r"12 trials of 1 worker .* lower resources.workers, .* or --concurrent"),
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


@pytest.mark.parametrize(
    ("cpus", "workers", "resident", "streaming"),
    [(2, 1, 2.0, 1.0), (2, 2, 1.0, 0.5), (4, 2, 2.0, 1.0), (16, 2, 8.0, 7.0), (2, 4, 0.5, 0.2), (1, 1, 1.0, None)],
)
def test_a_cpu_is_left_for_reading_where_images_are_streamed(
    cpus: float, workers: int, resident: float, streaming: float | None
) -> None:
    asked, nodes = overridden(f"resources.workers={workers}"), [{"CPU": cpus}]
    assert worker_resources(asked, "resident", nodes).cpus == resident
    if streaming is not None:
        assert worker_resources(asked, "streaming", nodes).cpus == streaming


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("workers", [1, 2, 3, "{min: 1, max: 8}"])
@pytest.mark.parametrize(
    "nodes",
    [
        OURS,
        [{"CPU": 2.0}, {"CPU": 64.0}],
        [{"CPU": 64.0}, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 2.0}],
        [{"CPU": 3.0}] * 3,
        [{}, {"CPU": 1.0}, {"CPU": 0.5}, {"CPU": 1.5}, {"CPU": 8.0}],
    ],
)
def test_every_worker_has_a_node(mode: str, workers: object, nodes: list[dict[str, float]]) -> None:
    """Heads without GPUs give nothing to workers on GPUs."""
    asked = config(workers)
    each = worker_resources(asked, mode, nodes)
    room = search_capacity(asked, mode, nodes, 4)
    assert each.places(nodes) >= asked.resources.worker_range.min
    assert WorkerResources(room.cpus, room.gpus).places(nodes) >= room.trials * asked.resources.worker_range.min
    if each.gpus:
        assert max(each.cpus, room.cpus) <= max(node["CPU"] for node in nodes if "GPU" in node)


def test_workers_of_our_own_cluster_fit_its_nodes() -> None:
    """Of the head's CPUs nothing is taken: a share of the cluster's total is more than a node has."""
    assert worker_resources(overridden("resources.workers=2"), "resident", OURS) == WorkerResources(3.0, True)


def test_a_large_node_does_not_make_workers_too_large_for_the_others() -> None:
    nodes = [{"CPU": 8.0}, {"CPU": 2.0}, {"CPU": 2.0}]
    assert worker_resources(overridden("resources.workers=2"), "resident", nodes).cpus == 4.0  # both on the first
    assert worker_resources(overridden("resources.workers=6"), "resident", nodes).cpus == 2.0


def test_what_the_total_holds_and_no_node_is_refused() -> None:
    wide = overridden("resources.workers=2", "resources.cpus_per_worker=5")
    with pytest.raises(ConfigError) as caught:
        worker_resources(wide, "resident", OURS)
    for text in ("2 workers with 5 CPUs and a GPU each", "1 of 4 CPUs, 2 of 4 CPUs and 1 GPU", "lower resources."):
        assert text in str(caught.value)


def test_streaming_that_would_wait_for_ever_is_refused() -> None:
    full = overridden("resources.workers=2", "resources.cpus_per_worker=1")
    assert worker_resources(full, "resident", LAPTOP).cpus == 1
    with pytest.raises(ConfigError) as caught:
        worker_resources(full, "streaming", LAPTOP)
    for text in ("2 workers with 1 CPUs each", "1 for reading", "2 CPUs", "cpus_per_worker", "data.mode=resident"):
        assert text in str(caught.value)


def test_streaming_on_a_single_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"1 worker with 0\.1 CPUs each, plus 1 for reading.*data\.mode=resident"):
        worker_resources(overridden("resources.workers=1"), "streaming", [{"CPU": 1.0}])


def test_more_cpus_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"3 workers with 2 CPUs each do not fit .*\(1 of 4 CPUs\); lower") as caught:
        worker_resources(overridden("resources.workers=3", "resources.cpus_per_worker=2"), "resident", [{"CPU": 4.0}])
    assert "reading" not in str(caught.value)


@pytest.mark.parametrize(("there", "asked", "taken"), [(2, "auto", True), (1, "auto", False), (2, "false", False)])
def test_gpus_are_taken_when_there_are_enough(there: int, asked: str, taken: bool) -> None:
    nodes = [{"CPU": 8.0, "GPU": float(there)}]
    set_to = overridden("resources.workers=2", f"resources.gpus={asked}")
    assert worker_resources(set_to, "resident", nodes).gpus is taken


def test_gpus_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 workers .* and a GPU each .* 8 CPUs and 1 GPU\); .*gpus=false"):
        worker_resources(
            overridden("resources.workers=2", "resources.gpus=true"), "resident", [{"CPU": 8.0, "GPU": 1.0}]
        )


def test_elastic_workers_take_whole_cpus_and_start_with_the_fewest() -> None:
    elastic = overridden("resources.workers={min: 1, max: 8}", "resources.resize_seconds=7")
    scaling = worker_resources(elastic, "resident", LAPTOP).scaling(elastic.resources)
    assert scaling.num_workers == (1, 8)
    assert scaling.resources_per_worker == {"CPU": 1.0}
    assert scaling.elastic_resize_monitor_interval_s == 7
    with pytest.raises(ConfigError, match="8 workers with 1 CPUs each, plus 1 for reading"):  # growing takes the last
        worker_resources(elastic, "streaming", LAPTOP)


def test_elastic_workers_on_gpus_grow_to_the_gpus_that_there_are() -> None:
    elastic = overridden("resources.workers={min: 1, max: 8}")
    assert worker_resources(elastic, "streaming", [{"CPU": 4.0, "GPU": 2.0}]) == WorkerResources(1.0, True)


def test_workers_on_gpus_leave_the_cpus_to_their_readers() -> None:
    nodes = [{"CPU": 32.0, "GPU": 2.0}]
    assert worker_resources(overridden("resources.workers=2"), "streaming", nodes).cpus == 1
    assert worker_resources(overridden("resources.workers=2"), "resident", nodes).cpus == 15


def test_a_cluster_that_grows_is_asked_for_what_it_has_not() -> None:
    asked = overridden("resources.workers=8", "resources.autoscale=true", "resources.gpus=true")
    resources = worker_resources(asked, "streaming", [{"CPU": 1.0}])
    assert (resources.cpus, resources.gpus) == (1.0, True)
    with pytest.raises(ConfigError, match=r"unknown whether the cluster will have GPUs; set resources\.gpus"):
        worker_resources(overridden("resources.autoscale=true"), "resident", [{"CPU": 1.0}])
