"""One command at a time in a folder: a lease that a kill cannot leave behind, on any filesystem.

The holder writes a small file and renews it. On the machine that wrote it, the holder's process tells at once whether
the lease is alive. From elsewhere a lease is watched: one that is not renewed for `EXPIRY_SECONDS` is dead. Clocks are
never compared between machines.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import ConfigError
from pipeline.storage import Folder

LEASE = "lease.json"
RENEW_SECONDS = 5.0
EXPIRY_SECONDS = 20.0  # several renewals: storage can be slow, and a paused process is not dead
SETTLE_SECONDS = 0.3  # after which the last of two commands that started together has written


@contextlib.contextmanager
def hold(folder: Folder) -> Iterator[None]:
    """Inside, this process alone works in the folder.

    Raises
    ------
    ConfigError
        When another command is at work there; the message names its machine and process.
    """
    if (holder := folder.read(LEASE)) is not None and _is_alive(folder, holder):
        raise ConfigError(_refusal(folder, holder))
    mine = _describe_process() | {"token": uuid.uuid4().hex}
    folder.write(LEASE, mine | {"renewals": 0})
    time.sleep(SETTLE_SECONDS)
    if (now := folder.read(LEASE) or mine)["token"] != mine["token"]:
        raise ConfigError(_refusal(folder, now))
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(folder, mine, ended), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        if (folder.read(LEASE) or {}).get("token") == mine["token"]:  # a paused process may have lost it
            folder.delete(LEASE)


def _renew(folder: Folder, mine: dict[str, Any], ended: threading.Event) -> None:
    renewals = 0
    while not ended.wait(RENEW_SECONDS):
        renewals += 1
        with contextlib.suppress(OSError):  # a full or unreachable disk is reported where it matters
            folder.write(LEASE, mine | {"renewals": renewals})


def _is_alive(folder: Folder, holder: dict[str, Any]) -> bool:
    """Whether the holder's process runs, or, for one of another machine, whether the lease is renewed."""
    if holder["machine"] == _machine():
        return _process_start(holder["pid"]) == holder["started"]
    deadline = time.monotonic() + EXPIRY_SECONDS
    while time.monotonic() < deadline:
        time.sleep(RENEW_SECONDS / 5)
        now = folder.read(LEASE)
        if now is None:
            return False
        if now != holder:
            return True
    return False


def _describe_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"machine": _machine(), "host": platform.node(), "pid": pid, "started": _process_start(pid)}


def _process_start(pid: int) -> float | None:
    """When a process of this machine started; with the pid it names the process for good. None when it has ended."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _machine() -> str:
    """Names the machine until it is started again, and the container in it, which numbers its own processes."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [boot.read_text().strip() if boot.exists() else platform.node()]
    return ":".join(parts + ([os.readlink(namespace)] if namespace.is_symlink() else []))


def _refusal(folder: Folder, holder: dict[str, Any]) -> str:
    return (
        f"another command is at work in {folder.path}: process {holder['pid']} on {holder['host']}. Wait for it, stop "
        "it, or give another name (--set name=...)"
    )
