"""One `digpro train` in a process of its own, which can be stopped at a deadline and leaves a journal of its calls."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO, Literal

import psutil

# An interrupted run saves a last checkpoint, in 20 s at most, and leaves its cluster; a second signal hurries it.
PATIENCE = ((signal.SIGINT, 90.0), (signal.SIGTERM, 30.0), (signal.SIGKILL, None))


@dataclass(frozen=True)
class Ended:
    """How a training command ended.

    Attributes
    ----------
    status : int
        Its exit status; negative for the signal that killed it.
    seconds : float
        Wall time.
    stopped : "", "deadline" or "interrupt"
        Why it was stopped from here, if it was.
    reason : str
        What it said last on its error output.
    """

    status: int
    seconds: float
    stopped: Literal["", "deadline", "interrupt"] = ""
    reason: str = ""


def train_command(preset: str, overrides: list[str]) -> list[str]:
    """`digpro train` with this Python."""
    options = [argument for override in overrides for argument in ("--set", override)]
    return [sys.executable, "-m", "pipeline.cli", "train", "--preset", preset, *options]


def run_until(command: list[str], deadline: float | None) -> Ended:
    """Run a command to its end; at the deadline (of `time.monotonic`), or at Ctrl-C, interrupt it and wait.

    It has a session of its own: a terminal sends Ctrl-C to whole groups, and a second one would cut off its last save.
    `subprocess` holds a lock while it polls a process, and a Ctrl-C just then leaves it locked: the next wait would
    never end. psutil holds none.
    """
    start = time.monotonic()
    stopped: Literal["", "deadline", "interrupt"] = ""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = psutil.Popen(command, start_new_session=True, stderr=said)
        try:
            process.wait(None if deadline is None else max(deadline - start, 0))
        except psutil.TimeoutExpired:
            stopped = "deadline"
        except KeyboardInterrupt:
            stopped = "interrupt"
        if stopped:
            interrupt(process)
        return Ended(process.returncode, time.monotonic() - start, stopped, repeat_errors(said))


def interrupt(process: psutil.Popen) -> None:
    """End a process, gently at first."""
    for number, seconds in PATIENCE:
        process.send_signal(number)
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(seconds)
            return


def repeat_errors(said: IO[str]) -> str:
    """Print a command's standard error; returns its error message, or else its last line."""
    said.seek(0)
    text = said.read().strip()
    if text:
        print(text, file=sys.stderr, flush=True)
    lines = text.splitlines()
    messages = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (messages or lines[-1:] or [""])[-1]
