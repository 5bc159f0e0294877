"""Ctrl-C and SIGTERM: one line, the shell's status, no stack trace of any language; and they reach what cleans up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline.errors import Interrupted
from pipeline.interrupts import interruptible, signal_handlers_kept

BOTH = pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])


@BOTH
def test_a_signal_is_one_exception_with_the_shells_status(number: signal.Signals, status: int) -> None:
    before = signal.getsignal(number)
    with (
        pytest.raises(Interrupted, match=r"^interrupted by (Ctrl-C|SIGTERM); do this$") as caught,
        interruptible("do this"),
    ):
        signal.raise_signal(number)
    assert caught.value.exit_status == status
    assert signal.getsignal(number) == before


def test_what_handles_failures_does_not_swallow_it() -> None:
    assert not issubclass(Interrupted, Exception)


def test_a_second_signal_ends_the_cleaning_up() -> None:
    steps = []

    def work() -> None:
        try:
            with interruptible("inner"):
                signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            steps.append("cleaning up")
            signal.raise_signal(signal.SIGINT)
            steps.append("not reached")

    with pytest.raises(Interrupted, match="outer"), interruptible("outer"):
        work()
    assert steps == ["cleaning up"]


def test_in_other_threads_the_block_just_runs() -> None:
    done = []

    def work() -> None:
        with interruptible(), signal_handlers_kept():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_handlers_that_somebody_replaces_are_put_back() -> None:
    def mine(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with signal_handlers_kept():
            signal.signal(signal.SIGTERM, lambda number, frame: None)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt(process: subprocess.Popen[str], number: signal.Signals, until: str) -> tuple[str, str]:
    """Send a signal once a line on stdout contains `until`; what was printed after it, on both streams."""
    assert process.stdout is not None
    for line in process.stdout:
        if until in line:
            break
    time.sleep(3)  # past the first checkpoint
    process.send_signal(number)
    return process.communicate(timeout=60)


SLEEPER = """
from pipeline import cli
def sleep(*_):
    cli.connect()
    import ray, time
    nap = ray.remote(lambda: time.sleep(600))
    print("asleep", flush=True)
    ray.get(nap.remote())
cli.load_config = sleep
import sys; sys.argv = ["digpro", "presets", "digits"]
cli.main()
"""


@pytest.mark.slow
@BOTH
def test_a_command_that_waits_for_ray_ends_with_one_line(number: signal.Signals, status: int) -> None:
    command = [sys.executable, "-c", SLEEPER]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own_cluster())
    out, error = interrupt(process, number, until="asleep")
    assert process.returncode == status, error
    assert out == ""
    assert len(error.splitlines()) == 1
    assert error.startswith("interrupted by ")


def own_cluster() -> dict[str, str]:
    """The environment without a cluster's address."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
