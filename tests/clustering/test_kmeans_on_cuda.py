"""On a GPU a pass waits for nothing but one small answer, and uses no float64: shown on tensors without data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.clustering import lloyd
from pipeline.clustering.lloyd import Lloyd
from pipeline.clustering.nearest import row_lengths
from pipeline.clustering.rows import Rows
from pipeline.clustering.seeding import kmeans_plus_plus
from pipeline.collectives import Scope

ROWS, SIZE, CLUSTERS, STARTS = 300, 8, 5, 3


class NoFloat64(TorchDispatchMode):
    """Fails when an operation leaves a float64 tensor on the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            wide = isinstance(tensor, Tensor) and tensor.is_cuda and tensor.dtype == torch.float64
            assert not wide, f"{func} makes float64 on the GPU"
        return found


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Tensors made on "cuda" have no data: whatever would have to wait for the GPU raises an error."""
    with FakeTensorMode(), NoFloat64():
        yield


def rows(dtype: torch.dtype) -> Rows:
    features = torch.empty(ROWS, SIZE, dtype=dtype, device="cuda")
    return Rows(features, row_lengths(features), 1, 0, ROWS, Scope.THIS_WORKER)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the flags that were waited for; the answers are: no cluster is empty, and the last start has ended."""
    shapes: list[torch.Size] = []

    def answer(flags: Tensor) -> list[Any]:
        shapes.append(flags.shape)
        has_empty = [False] * STARTS
        return has_empty if flags.ndim == 1 else [[True, True, False], has_empty]

    monkeypatch.setattr(lloyd, "_to_host", answer)
    return shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_pass_over_the_rows_does_not_wait(dtype: torch.dtype, waits: list[torch.Size]) -> None:
    with fake_gpu():
        runs = Lloyd(rows(dtype), torch.empty(STARTS, CLUSTERS, SIZE, device="cuda"), reseed=False)
        moved = torch.empty(STARTS, CLUSTERS, dtype=torch.bool, device="cuda")
        found = runs._run(runs._next_pass(runs.centers, moved))
    assert found.sums.shape == (STARTS, CLUSTERS, SIZE + 1)
    assert found.inertia.shape == found.changed.shape == (STARTS,)


@pytest.mark.parametrize("reseed", [False, True])
def test_an_iteration_waits_once_and_the_start_too(waits: list[torch.Size], reseed: bool) -> None:
    with fake_gpu():
        runs = Lloyd(rows(torch.float32), torch.empty(STARTS, CLUSTERS, SIZE, device="cuda"), reseed=reseed)
        assert runs.iterate(0.0, 0.0)
    assert runs.active == [0, 1]
    assert waits == [(STARTS,), (2, STARTS)]


def test_filling_an_empty_cluster_waits(waits: list[torch.Size]) -> None:
    with fake_gpu():
        runs = Lloyd(rows(torch.float32), torch.empty(STARTS, CLUSTERS, SIZE, device="cuda"), reseed=True)
        runs.has_empty = [True] * STARTS
        with pytest.raises(DynamicOutputShapeException):
            runs.iterate(0.0, 0.0)


def test_seeding_does_not_wait() -> None:
    with fake_gpu():
        uniforms = torch.empty(STARTS, CLUSTERS - 1, 3, device="cuda")
        first = torch.empty(STARTS, dtype=torch.int64, device="cuda")
        found = kmeans_plus_plus(torch.empty(ROWS, SIZE, device="cuda"), first, uniforms)
    assert found.centers.shape == (STARTS, CLUSTERS, SIZE)
