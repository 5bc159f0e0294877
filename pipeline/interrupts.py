"""Ctrl-C and SIGTERM end a command in one way, whatever handlers Ray installs."""

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
"""Set for good by the first signal: what processes that are being ended say is of no interest."""


@contextlib.contextmanager
def interruptible(remedy: str = RUN_AGAIN) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM raise `Interrupted`, whose message ends with `remedy`.

    The handlers of before are back once the block has ended, so that within an outer `interruptible` a second signal
    ends the cleaning up too. Only the main thread can handle signals; in any other the block just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        was_interrupted.set()
        raise KeyboardInterrupt  # the one exception that gets out of `ray.get`

    with signal_handlers_kept():
        for number in SIGNALS:
            signal.signal(number, interrupt)
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(received[0] if received else signal.SIGINT, remedy) from None


@contextlib.contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Puts the handlers of before back: `ray.init` installs one for SIGTERM that prints a C++ stack trace.

    Where there was none, Ray's Python handler stays, which shuts Ray down, but not the C++ one on top of it.
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
