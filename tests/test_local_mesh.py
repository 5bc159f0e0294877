"""Direct messages between workers of one machine: gloo's values, at any size; what fails is told, or falls back."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline import local_mesh
from pipeline.local_mesh import LocalMesh, connect_mesh
from tests.helpers.workers import Workers

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)
SHAPES = ((), (0, 3), (5,), (3, 1, 2), (1 << 20,))  # the last is larger than all buffers


def _inputs(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [(4 * torch.randn(shape, generator=generator)).to(kind) for shape in SHAPES for kind in TYPES]


def _stacked(rank: int) -> list[Tensor]:
    mesh = connect_mesh()
    assert mesh is not None
    return [mesh.all_stack(x.T.contiguous().T if x.dim() == 2 else x) for x in _inputs(rank)]


@pytest.mark.parametrize("workers", ["pair", "trio"])
def test_all_workers_have_all_tensors_in_rank_order(workers: str, request: pytest.FixtureRequest) -> None:
    answers = request.getfixturevalue(workers).run(_stacked)
    expected = [torch.stack(each) for each in zip(*(_inputs(rank) for rank in range(len(answers))), strict=True)]
    for found in answers:
        assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


def _with_one_elsewhere(rank: int) -> bool:
    if rank == 1:  # as on a machine that does not have rank 0's folder
        local_mesh._listen = lambda listener, folder, rank: listener.bind("/nowhere/1")
    return connect_mesh() is None and sum(_stacked_by_gloo()) == 3


def _stacked_by_gloo() -> list[int]:
    parts = [torch.zeros(1), torch.zeros(1)]
    dist.all_gather(parts, torch.ones(1) + dist.get_rank())
    return [int(part) for part in parts]


def _with_one_that_cannot_be_called(rank: int) -> bool:
    if rank == 1:
        local_mesh._call = lambda peers, folder, rank: peers[0].connect(f"{folder}/none")
    return connect_mesh() is None


def _leave(rank: int) -> str:
    mesh = connect_mesh()
    assert mesh is not None
    if rank:
        mesh.peers[0].close()
        return "left"
    with pytest.raises(ConnectionError, match="worker 1 has gone"):
        mesh.all_stack(torch.ones(3))
    return "told"


def _hang(rank: int) -> str:
    mesh = connect_mesh()
    assert mesh is not None
    if rank:
        time.sleep(1)
        return "hung"
    local_mesh.TIMEOUT_SECONDS = 0.1
    with pytest.raises(TimeoutError, match=r"no message from workers \[1\] for 0 s"):
        mesh.all_stack(torch.ones(3))
    return "told"


@pytest.fixture
def two(tmp_path: Path):
    workers = Workers.gloo(2, tmp_path)
    yield workers
    workers.close()


@pytest.mark.parametrize("case", [_with_one_elsewhere, _with_one_that_cannot_be_called])
def test_workers_of_two_machines_have_none(two: Workers, case) -> None:
    assert two.run(case) == [True, True]


def test_a_worker_that_has_gone_or_hangs_is_told_of(two: Workers) -> None:
    assert two.run(_leave) == ["told", "left"]
    assert two.run(_hang) == ["told", "hung"]


def test_bytes_that_come_in_pieces_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    ours, theirs = socket.socketpair()
    mesh = LocalMesh({1: ours})
    theirs.sendall(torch.arange(4.0).numpy().tobytes()[:7])
    unsent, missing = {1: memoryview(b"")}, {1: memoryview(bytearray(16))}
    assert mesh._exchange(unsent, missing)
    assert len(missing[1]) == 9
