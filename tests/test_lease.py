"""One command at a time in a folder; a kill leaves nothing that stops the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline import lease
from pipeline.errors import ConfigError
from pipeline.lease import LEASE, hold
from pipeline.storage import Folder

HOLDER = """
import sys, time
from pipeline.lease import hold
from pipeline.storage import Folder
with hold(Folder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(f"{tmp_path}/run").make()


def test_the_lease_ends_with_the_work(folder: Folder) -> None:
    with hold(folder):
        assert (folder.read(LEASE) or {})["pid"] == os.getpid()
    assert folder.read(LEASE) is None
    with hold(folder):
        pass


def test_an_error_inside_ends_the_lease_too(folder: Folder) -> None:
    with pytest.raises(KeyError), hold(folder):
        raise KeyError
    assert folder.read(LEASE) is None


def test_a_store_that_fails_at_the_end_does_not_hide_the_error(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the token has expired")

    def work() -> None:
        with hold(folder):
            monkeypatch.setattr(Folder, "read", fail)
            raise ValueError("the actual error")

    with pytest.raises(ValueError, match="the actual error"):
        work()
    monkeypatch.undo()
    assert folder.read(LEASE) is not None
    with hold(folder):  # it was left behind, and this process knows
        pass
    assert folder.read(LEASE) is None


def test_a_second_command_is_refused_while_the_first_lives(folder: Folder) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLDER, folder.path], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with (
            pytest.raises(ConfigError, match=rf"working in .*run: process {first.pid} on .*--set name="),
            hold(folder),
        ):
            pytest.fail("held twice")
        first.kill()
        first.wait()
        started = time.monotonic()
        with hold(folder):  # at once: the process that wrote the lease is gone
            assert time.monotonic() - started < 5
    finally:
        first.kill()
        first.wait()


def test_a_number_that_another_process_took_over_does_not_count(folder: Folder) -> None:
    """The first one's process has ended, and its number has been given to this test."""
    with hold(folder):
        held = folder.read(LEASE) or {}
    folder.write(LEASE, held | {"started": held["started"] - 100})
    with hold(folder):
        assert (folder.read(LEASE) or {})["started"] == held["started"]


def test_a_process_that_has_ended_and_was_not_collected_does_not_count(folder: Folder) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLDER, folder.path], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        first.kill()
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # it stays as a zombie
        with hold(folder):
            pass
    finally:
        first.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system keeps the time itself")
def test_a_clock_that_is_set_does_not_end_a_lease(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux knows when a process started as ticks since its own start, whose time moves with the clock."""
    with hold(folder):
        now = time.time()
        monkeypatch.setattr(psutil, "boot_time", lambda: now - 12345.0)
        monkeypatch.setattr("psutil._pslinux.BOOT_TIME", now - 12345.0, raising=False)
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: now - 12345.0)
        with pytest.raises(ConfigError, match="another command is working"), hold(folder):
            pytest.fail("held twice")


PAUSED = """
import sys, time
from pipeline import lease
from pipeline.storage import Folder
lease.RENEW_SECONDS = 0.1
with lease.hold(Folder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.mark.parametrize("successor", ["works", "has ended"])
def test_a_holder_that_was_paused_ends_when_another_has_taken_over(folder: Folder, successor: str) -> None:
    command = [sys.executable, "-c", PAUSED, folder.path]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        theirs = ELSEWHERE | {"renewals": 1}
        folder.write(LEASE, theirs) if successor == "works" else folder.delete(LEASE)
        holder.send_signal(signal.SIGCONT)
        _, said = holder.communicate(timeout=60)
    finally:
        holder.kill()
        holder.wait()
    assert holder.returncode == 1
    other = "process 1 on node-7" if successor == "works" else "another command, which has ended,"
    assert f"{other} has taken over {folder.path}; this process ends" in said
    assert folder.read(LEASE) == (theirs if successor == "works" else None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.6)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.05)


ELSEWHERE = {"machine": "another", "host": "node-7", "pid": 1, "started": 0.0, "token": "theirs"}


@pytest.mark.usefixtures("quick")
def test_a_lease_of_another_machine_lives_while_it_is_renewed(folder: Folder) -> None:
    ended = threading.Event()
    renewal = threading.Thread(target=lease._renew, args=(folder, ELSEWHERE, ended))
    folder.write(LEASE, ELSEWHERE | {"renewals": 0})
    renewal.start()
    with pytest.raises(ConfigError, match="process 1 on node-7"), hold(folder):
        pytest.fail("held twice")
    ended.set()
    renewal.join()
    with hold(folder):  # once it is renewed no more
        assert (folder.read(LEASE) or {})["pid"] == os.getpid()


@pytest.mark.usefixtures("quick")
def test_of_two_that_take_over_together_one_gives_way(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write(LEASE, ELSEWHERE | {"renewals": 0})
    monkeypatch.setattr(time, "sleep", lambda seconds: folder.write(LEASE, ELSEWHERE | {"token": "third"}))
    monkeypatch.setattr(lease, "_is_alive", lambda folder, holder: False)
    with pytest.raises(ConfigError, match="process 1 on node-7"), hold(folder):
        pytest.fail("held twice")
