"""Ctrl-C and SIGTERM end a command in the same way, whatever handlers Ray installs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from pipeline.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
RUN_AGAIN = "run the same command again to continue"
was_interrupted = threading.Event()
"""Set permanently by the first signal: errors of processes that are being ended are not worth showing."""


@contextlib.contextmanager
def interruptible(remedy: str = RUN_AGAIN) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM raise `Interrupted`, whose message ends with `remedy`.

    The previous handlers are restored after the block, so that within an outer `interruptible` a second signal ends
    the cleanup too. Only the main thread can handle signals; in any other the block just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        was_interrupted.set()
        raise KeyboardInterrupt  # the only exception that `ray.get` lets through

    with signal_handlers_kept():
        for number in SIGNALS:
            signal.signal(number, interrupt)
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(received[0] if received else signal.SIGINT, remedy) from None


@contextlib.contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Restores the previous handlers: `ray.init` installs one for SIGTERM that prints a C++ stack trace.

    Where there was none, Ray's Python handler, which shuts Ray down, stays, and the C++ one on top of it is removed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            kept = signal.getsignal(number) if handler in (None, signal.SIG_DFL) else handler
            signal.signal(number, signal.SIG_DFL if kept is None else kept)
