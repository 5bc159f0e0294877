"""A worker computes with the CPUs that Ray gave it, whatever OMP_NUM_THREADS says."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray
import torch

from pipeline.training.threads import use_given_cpus


@pytest.fixture(autouse=True)
def threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("assigned", "threads"), [({"CPU": 3.0}, 3), ({"CPU": 2.9}, 2), ({"CPU": 0.5}, 1), ({"GPU": 1.0}, 1)]
)
def test_threads_are_the_cpus_of_the_worker(
    monkeypatch: pytest.MonkeyPatch, assigned: dict[str, float], threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = SimpleNamespace(get_assigned_resources=lambda: assigned)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert use_given_cpus() == threads
    assert torch.get_num_threads() == threads
