"""Processes that run during the whole test session: gloo ones, or others that are set up in their own way."""

from __future__ import annotations

import importlib
import pickle
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

END = b""


def join_gloo(rank: int, world: int, store: str) -> None:
    """Become one of `world` workers that find each other through a file."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)


def _serve(rank: int, set_up: Callable[[int], None], pipe: Connection) -> None:
    torch.set_num_threads(1)
    # In some runs of the whole suite a process that had been idle for minutes did not find a module of ours, whose file
    # was there; looking again did not help. Not explained: so they are loaded before it can happen.
    importlib.import_module("pipeline.build")
    set_up(rank)
    while (message := pipe.recv_bytes()) != END:
        try:
            function, args = pickle.loads(message)
            pipe.send((function(rank, *args), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))
    if dist.is_initialized():
        dist.destroy_process_group()


class Workers:
    """Processes; `run(f, *args)` calls f(rank, *args) on each and returns their results in rank order.

    `set_up(rank)` is called once in each.
    """

    def __init__(self, processes: int, set_up: Callable[[int], None]) -> None:
        context = mp.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, set_up, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    @classmethod
    def gloo(cls, world: int, folder: Path) -> Workers:
        """The workers of one gloo group."""
        return cls(world, partial(join_gloo, world=world, store=str(folder / "store")))

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send_bytes(ForkingPickler.dumps((function, args)))
        answers = [pipe.recv() if pipe.poll(300) else (None, "no answer in 300 s") for pipe in self.pipes]
        errors = [error for _, error in answers if error]
        assert not errors, "\n".join(errors)
        return [result for result, _ in answers]

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send_bytes(END)
            process.join(10)
