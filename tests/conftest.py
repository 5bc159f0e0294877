"""Golden vectors, and a pair of gloo processes that lives for the whole test session."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

GOLDEN = Path(__file__).parent / "data"


def golden(name: str) -> dict[str, Any]:
    """Arrays of tests/data/<name>.npz as tensors; texts and scalars as they are."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    return {k: torch.from_numpy(np.array(v)) if v.dtype.kind in "fiub" else v for k, v in arrays.items()}


def assert_close(actual: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Every element within rtol of the largest expected magnitude, or of 1e-2 where all are zero but for rounding."""
    actual, expected = (torch.as_tensor(x).detach() for x in (actual, expected))
    assert actual.shape == expected.shape
    scale = max(float(expected.abs().max()), 1e-2)
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=rtol * scale)


def _serve(rank: int, world: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    while (job := pipe.recv()) is not None:
        function, args = job
        try:
            pipe.send((function(rank, *args), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))
    dist.destroy_process_group()


class Workers:
    """W gloo processes; `run(f, *args)` calls f(rank, *args) on each and returns their results in rank order."""

    def __init__(self, world: int, folder: Path) -> None:
        context = mp.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, str(folder / "store"), theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((function, args))
        answers = [pipe.recv() if pipe.poll(300) else (None, "no answer in 300 s") for pipe in self.pipes]
        errors = [error for _, error in answers if error]
        assert not errors, "\n".join(errors)
        return [result for result, _ in answers]

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join(10)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    workers = Workers(2, tmp_path_factory.mktemp("pair"))
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    workers = Workers(3, tmp_path_factory.mktemp("trio"))
    yield workers
    workers.close()
