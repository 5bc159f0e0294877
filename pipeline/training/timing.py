"""Where the time of an epoch went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
ENTRIES = ("first_batch", "batch_wait", "step", "estep", "evaluate", "monitor", "checkpoint")


class EpochTimer:
    """Seconds by entry, and batches handed out, since the last `restart`.

    A GPU lags behind the host, so blocks that are `on_device` are timed there by the GPU's own clock.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.restart()

    def restart(self) -> None:
        """Begin an epoch, or the rest of one that was interrupted."""
        self.seconds = dict.fromkeys(ENTRIES, 0.0)
        self.marks: list[tuple[str, torch.Event, torch.Event]] = []
        self.batches = 0
        self.started = time.perf_counter()

    @contextmanager
    def time(self, entry: str, *, on_device: bool = False) -> Iterator[None]:
        """Add the time inside the block to an entry of ENTRIES."""
        if on_device and self.device.type != "cpu":
            begin, end = (torch.Event(self.device, enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self.marks.append((entry, begin, end))
            return
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[entry] += time.perf_counter() - start

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches, counted; the wait for the first is first_batch, for the others batch_wait."""
        entry = "first_batch"
        while True:
            with self.time(entry):
                item = next(batches, None)
            if item is None:
                return
            self.batches += 1
            yield item
            entry = "batch_wait"

    def totals(self) -> dict[str, float]:
        """Seconds of all entries, and of the `epoch` as a whole; waits for the device."""
        for entry, begin, end in self.marks:
            end.synchronize()
            self.seconds[entry] += begin.elapsed_time(end) / 1000
        self.marks.clear()
        return {**self.seconds, "epoch": time.perf_counter() - self.started}
