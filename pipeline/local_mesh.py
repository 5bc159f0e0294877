"""Messages between the workers of one machine, over direct sockets.

gloo hands each message to its own threads, which have to be woken on busy cores: 1 to 2 ms for a few kilobytes. The
thread that needs the message can fetch it itself in a tenth of that time (`python -m benchmarks.workers`).
"""

from __future__ import annotations

import select
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT_SECONDS = 1800.0  # without a byte from anyone; the same as in torch's process groups
RANK_BYTES = 4


class LocalMesh:
    """This worker's connections to all others, by rank."""

    def __init__(self, peers: dict[int, socket.socket]) -> None:
        self.peers, self.rank = peers, dist.get_rank()
        for peer in peers.values():
            peer.setblocking(False)

    def all_stack(self, x: Tensor) -> Tensor:
        """The workers' tensors on the CPU, all of one shape and type, stacked in rank order: (W, *x.shape).

        Raises
        ------
        ConnectionError
            When a worker is gone.
        TimeoutError
            When one has not answered for half an hour.
        """
        out = x.new_empty((len(self.peers) + 1, *x.shape))
        out[self.rank] = x
        parts = [memoryview(part.reshape(-1).view(torch.uint8).numpy()) for part in out]
        unsent = dict.fromkeys(self.peers, parts[self.rank])
        missing = {rank: parts[rank] for rank in self.peers}
        while self._exchange(unsent, missing):
            self._wait(unsent, missing)
        return out

    def _exchange(self, unsent: dict[int, memoryview], missing: dict[int, memoryview]) -> bool:
        """Send and receive what is possible without waiting; returns whether anything is left."""
        for rank, peer in self.peers.items():
            try:
                unsent[rank], missing[rank] = _send(peer, unsent[rank]), _receive(peer, missing[rank])
            except ConnectionError as error:
                raise ConnectionError(f"worker {rank} has gone ({error}); its own log says why") from error
        return any(map(len, [*unsent.values(), *missing.values()]))

    def _wait(self, unsent: dict[int, memoryview], missing: dict[int, memoryview]) -> None:
        """Sleep until a peer sends or takes something."""
        poll = select.poll()
        for rank, peer in self.peers.items():
            if events := (select.POLLIN if missing[rank] else 0) | (select.POLLOUT if unsent[rank] else 0):
                poll.register(peer, events)
        if not poll.poll(TIMEOUT_SECONDS * 1000):
            late = [rank for rank in self.peers if missing[rank] or unsent[rank]]
            raise TimeoutError(f"no message from workers {late} for {TIMEOUT_SECONDS:.0f} s; they may hang")


def _send(peer: socket.socket, data: memoryview) -> memoryview:
    """Send as much as the peer takes; returns the rest."""
    with suppress(BlockingIOError):
        while data:
            data = data[peer.send(data) :]
    return data


def _receive(peer: socket.socket, space: memoryview) -> memoryview:
    """Receive what has arrived; returns the space that is still empty."""
    with suppress(BlockingIOError):
        while space:
            if not (count := peer.recv_into(space)):
                raise ConnectionError("end of its messages")
            space = space[count:]
    return space


def connect_mesh() -> LocalMesh | None:
    """The mesh of the process group; None where its workers do not all run on one machine. All workers call it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    with _folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        if not _on_all(partial(_listen, listener, folder, rank)):
            return None
        peers = {lower: socket.socket(socket.AF_UNIX) for lower in range(rank)}
        if not _on_all(partial(_call, peers, folder, rank)):
            for peer in peers.values():
                peer.close()
            return None
        return LocalMesh(peers | _answer(listener, world - 1 - rank))


@contextmanager
def _folder() -> Iterator[str]:
    """A folder that rank 0 makes; the other workers see it if they share its disk."""
    folder = [tempfile.mkdtemp(prefix="digpro-") if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(folder)
    yield folder[0]
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder[0])


def _on_all(action: Callable[[], None]) -> bool:
    """Whether an action succeeds on all workers."""
    done: list[bool] = [False] * dist.get_world_size()
    try:
        action()
        mine = True
    except OSError:
        mine = False
    dist.all_gather_object(done, mine)
    return all(done)


def _listen(listener: socket.socket, folder: str, rank: int) -> None:
    listener.bind(f"{folder}/{rank}")
    listener.listen()


def _call(peers: dict[int, socket.socket], folder: str, rank: int) -> None:
    for other, peer in peers.items():
        peer.connect(f"{folder}/{other}")
        peer.sendall(rank.to_bytes(RANK_BYTES, "big"))


def _answer(listener: socket.socket, count: int) -> dict[int, socket.socket]:
    """Accept the connections of `count` workers, by rank."""
    peers = (listener.accept()[0] for _ in range(count))
    return {int.from_bytes(peer.recv(RANK_BYTES), "big"): peer for peer in peers}
