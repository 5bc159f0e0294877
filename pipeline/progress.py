"""Progress lines of long commands."""

from __future__ import annotations

import time
from collections.abc import Callable

Echo = Callable[[str], None]
REPORT_SECONDS = 5.0  # between two lines


class Progress:
    """Prints a line now and then: items done, their rate in this call, and the time that is left.

    The rate is measured after the first item, because that one waits for processes to start.

    Parameters
    ----------
    title : str
        What the line begins with.
    unit : str
        What is counted, in the plural.
    total : int or None
        Items in all; None where that is known only at the end.
    done : int
        Items that an earlier call did.
    echo : callable
        Takes a line.
    """

    def __init__(self, title: str, unit: str, total: int | None, done: int, echo: Echo) -> None:
        self.title, self.unit, self.total, self.done, self.echo = title, unit, total, done, echo
        self.counted = self.started = self.printed = 0.0

    def add(self, number: int) -> None:
        """Count items that are done."""
        self.done += number
        now = time.monotonic()
        if not self.started:
            self.counted, self.started, self.printed = self.done, now, now
        if self.done != self.total and now - self.printed < REPORT_SECONDS:
            return
        self.printed = now
        rate = (self.done - self.counted) / max(now - self.started, 1e-9)
        self.echo(f"{self.title}: {self._state()}  {rate:.0f} {self.unit}/s{self._left(rate)}")

    def _state(self) -> str:
        return f"{self.done:,} {self.unit}" if self.total is None else f"{self.done:,}/{self.total:,} {self.unit}"

    def _left(self, rate: float) -> str:
        if self.total is None:
            return ""
        minutes, seconds = divmod(round((self.total - self.done) / max(rate, 1e-9)), 60)
        return f"  {minutes}:{seconds:02d} left"
