"""Independent tasks, with a stand-in for Ray that runs a task when it is waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.data import tasks
from pipeline.data.tasks import TASKS_PER_CPU, run_each


class Cluster:
    """What `run_each` uses of Ray: each wait ends the newest task, and `cpus` may change meanwhile."""

    def __init__(self, cpus: float) -> None:
        self.cpus = cpus
        self.pending: list[Any] = []
        self.most_pending = 0
        self.cancelled: list[Any] = []
        self.cancel = self.cancelled.append

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cpus} if self.cpus else {}

    def remote(self, num_cpus: int) -> Callable[..., Any]:
        return lambda task: SimpleNamespace(remote=lambda *arguments: self._submit((task, arguments)))

    def _submit(self, reference: Any) -> Any:
        self.pending.append(reference)
        self.most_pending = max(self.most_pending, len(self.pending))
        return reference

    def wait(self, references: list[Any]) -> tuple[list[Any], list[Any]]:
        assert references == self.pending
        return [self.pending.pop()], list(self.pending)

    def get(self, reference: Any) -> Any:
        task, arguments = reference
        return task(*arguments)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster(cpus=2)
    monkeypatch.setattr(tasks, "ray", cluster)
    return cluster


def double(number: int) -> int:
    return 2 * number


def test_no_more_tasks_are_pending_than_the_cluster_can_use(cluster: Cluster) -> None:
    asked = 0

    def calls() -> Iterator[tuple[int]]:
        nonlocal asked
        for asked in range(1, 101):
            yield (asked,)

    found = []
    for done, result in enumerate(run_each(double, calls()), start=1):
        found.append(result)
        assert asked <= done - 1 + 2 * TASKS_PER_CPU
    assert sorted(found) == [2 * number for number in range(1, 101)]
    assert cluster.most_pending == 2 * TASKS_PER_CPU
    assert cluster.cancelled == []


def test_a_cluster_that_changes_is_used_as_it_is(cluster: Cluster) -> None:
    results = run_each(double, ((number,) for number in range(100)))
    next(results)
    cluster.cpus = 5
    next(results)
    assert len(cluster.pending) == 5 * TASKS_PER_CPU - 1
    cluster.cpus = 1
    for _ in range(30):
        next(results)
    assert len(cluster.pending) == TASKS_PER_CPU - 1
    assert len(list(results)) == 100 - 32


def test_a_cluster_without_cpus_is_asked_for_some(cluster: Cluster) -> None:
    """Its autoscaler adds nodes only for tasks that wait."""
    cluster.cpus = 0
    assert len(list(run_each(double, [(1,), (2,), (3,)]))) == 3


def test_an_error_cancels_what_is_pending(cluster: Cluster) -> None:
    def fail(number: int) -> None:
        raise ValueError(number)

    with pytest.raises(ValueError, match="7"):
        list(run_each(fail, [(number,) for number in range(100)]))
    assert [arguments for _, arguments in cluster.cancelled] == [(number,) for number in range(7)]


def test_one_task_or_none_runs_in_this_process(cluster: Cluster) -> None:
    assert list(run_each(double, iter([(4,)]))) == [8]
    assert list(run_each(double, [])) == []
    assert cluster.most_pending == 0
