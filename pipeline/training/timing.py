"""Where the time of an epoch went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
ENTRIES = ("first_batch", "batch_wait", "step", "estep", "evaluate", "checkpoint")


class Ledger:
    """Seconds by entry since the last `close`."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(ENTRIES, 0.0)
        self.opened = time.perf_counter()

    @contextmanager
    def time(self, entry: str) -> Iterator[None]:
        """Add the time inside the block to an entry of ENTRIES."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[entry] += time.perf_counter() - start

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same items; the wait for the first counts as first_batch, for the others as batch_wait."""
        entry = "first_batch"
        while True:
            with self.time(entry):
                item = next(batches, None)
            if item is None:
                return
            yield item
            entry = "batch_wait"

    def close(self) -> dict[str, float]:
        """All entries and their `epoch` total in seconds; starts the next page."""
        now = time.perf_counter()
        page = {**self.seconds, "epoch": now - self.opened}
        self.seconds, self.opened = dict.fromkeys(ENTRIES, 0.0), now
        return page
