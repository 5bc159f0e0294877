"""One command at a time in a folder, on any filesystem: a lease that dies with its holder.

The holder writes a small file and renews it. On the same machine, the holder's process shows at once whether the lease
is alive. Other machines watch the file: a lease that is not renewed for `EXPIRY_SECONDS` is dead. Clocks are never
compared between machines.

A holder that was paused for that long (a suspended laptop, stalled storage) may find another's lease when it resumes.
It ends at once, as if it had been killed: anything it still wrote would damage the other's files.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil

from pipeline.errors import ConfigError
from pipeline.storage import Folder

LEASE = "lease.json"
RENEW_SECONDS = 5.0
EXPIRY_SECONDS = 20.0  # several renewals: storage can be slow, and a paused process is not dead
LOST_STATUS = 1  # exit status of a process that another has replaced
SETTLE_SECONDS = 0.3  # by then, two commands that started together have both written
_held: set[str] = set()  # tokens of the leases that this process holds


@contextlib.contextmanager
def hold(folder: Folder, otherwise: str = "give another name (--set name=...)") -> Iterator[None]:
    """Inside, this process alone works in the folder. `otherwise` says what to do beside waiting, if it is refused.

    Raises
    ------
    ConfigError
        When another command is at work there; the message names its machine and process.
    """
    if (holder := folder.read(LEASE)) is not None and _is_alive(folder, holder):
        raise ConfigError(_refusal(folder, holder, otherwise))
    mine = _describe_process() | {"token": uuid.uuid4().hex}
    _held.add(mine["token"])
    folder.write(LEASE, mine | {"renewals": 0})
    time.sleep(SETTLE_SECONDS)
    if (now := folder.read(LEASE) or mine)["token"] != mine["token"]:
        raise ConfigError(_refusal(folder, now, otherwise))
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(folder, mine, ended), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        with contextlib.suppress(OSError, ConfigError):  # left behind it counts no more, and must not hide an error
            if (folder.read(LEASE) or {}).get("token") == mine["token"]:  # a paused process may have lost it
                folder.delete(LEASE)
        _held.discard(mine["token"])


def _renew(folder: Folder, mine: dict[str, Any], ended: threading.Event) -> None:
    renewals = 0
    while not ended.wait(RENEW_SECONDS):
        renewals += 1
        with contextlib.suppress(OSError, ConfigError):  # storage failures are reported where they matter
            found = folder.read(LEASE)
            if (found or {}).get("token") != mine["token"]:
                _end_process(folder, found)
            folder.write(LEASE, mine | {"renewals": renewals})


def _end_process(folder: Folder, holder: dict[str, Any] | None) -> NoReturn:
    other = f"process {holder['pid']} on {holder['host']}" if holder else "another command, which has ended,"
    print(
        f"this process was paused or lost its storage, and {other} has taken over {folder.path}; this process ends, "
        "and the result of the other one is kept",
        file=sys.stderr,
        flush=True,
    )
    os._exit(LOST_STATUS)


def _is_alive(folder: Folder, holder: dict[str, Any]) -> bool:
    """Whether the holder's process runs, or, for a holder on another machine, whether the lease is renewed."""
    if holder["machine"] == _machine():
        if holder["pid"] == os.getpid() and holder["token"] not in _held:  # left behind, as the storage failed
            return False
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
    """Start time of a process of this machine, which with the pid identifies it; None when it has ended.

    On Linux in clock ticks since boot: psutil adds the boot time, which changes whenever the clock is set.
    """
    try:
        if sys.platform != "linux":
            return psutil.Process(pid).create_time()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # after the name, which may hold ")"
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else float(fields[19])  # state, starttime: proc_pid_stat(5)


def _machine() -> str:
    """Identifies the machine until it reboots, and the container, which has process numbers of its own."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [boot.read_text().strip() if boot.exists() else platform.node()]
    return ":".join(parts + ([os.readlink(namespace)] if namespace.is_symlink() else []))


def _refusal(folder: Folder, holder: dict[str, Any], otherwise: str) -> str:
    return (
        f"another command is working in {folder.path}: process {holder['pid']} on {holder['host']}. Wait for it, stop "
        f"it, or {otherwise}"
    )
