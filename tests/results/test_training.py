"""A training command that is stopped in time, saves, and is continued; the command is a fake one."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.results import training
from benchmarks.results.training import run_until, train_command

SAVES = """
import pathlib, signal, sys, time
def save(number, frame):
    pathlib.Path(sys.argv[1], "saved").touch()
    print("interrupted by Ctrl-C; run the same command again to continue", file=sys.stderr)
    sys.exit(130)
signal.signal(signal.SIGINT, save)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""
DEAF = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
time.sleep(60)
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_a_command_that_ends_in_time_is_left_alone() -> None:
    ended = run_until(python("raise SystemExit(3)"), time.monotonic() + 60)
    assert (ended.status, ended.stopped, ended.reason) == (3, "", "")
    assert 0 < ended.seconds < 60


def test_at_the_deadline_a_command_is_interrupted_and_may_save(tmp_path: Path) -> None:
    ended = run_until(python(SAVES, str(tmp_path)), time.monotonic() + 3)
    assert (ended.status, ended.stopped) == (130, "deadline")
    assert (tmp_path / "saved").exists()
    assert ended.reason.startswith("interrupted by Ctrl-C")


def test_a_command_that_does_not_listen_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, _), *rest = training.PATIENCE
    monkeypatch.setattr(training, "PATIENCE", ((first, 0.2), *rest))
    ended = run_until(python(DEAF), time.monotonic() + 1)
    assert (ended.status, ended.stopped) == (-15, "deadline")
    assert ended.seconds < 30


def test_ctrl_c_is_passed_on_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(process: psutil.Popen, timeout: float | None = None) -> int:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(psutil.Popen, "wait", interrupted)
    ended = run_until(python(SAVES, str(tmp_path)), None)
    assert (ended.status, ended.stopped) == (130, "interrupt")


def test_the_reason_is_the_message_of_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    said = "import sys; print('warning\\nerror: the disk is full\\nmore', file=sys.stderr); sys.exit(1)"
    ended = run_until(python(said), None)
    assert (ended.status, ended.reason) == (1, "the disk is full")
    assert "more" in capfd.readouterr().err
    assert run_until(python("raise OSError('broken')"), None).reason == "OSError: broken"


def test_the_command_is_digpro_train() -> None:
    command = train_command("digits", ["seed=3", "optim.lr=0.1"])
    assert command[1:] == [
        "-m",
        "pipeline.cli",
        "train",
        "--preset",
        "digits",
        "--set",
        "seed=3",
        "--set",
        "optim.lr=0.1",
    ]
