"""Runs commands as a user would, and watches from outside: their lines, the memory of their processes, their kill.

Memory is counted in two parts (/proc/PID/status): what a process has for itself (RssAnon), and the shared memory that
it has touched (RssShmem), which is Ray's object store. The size of the store itself is that of the file behind it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

POLL_SECONDS, SAMPLE_SECONDS = 0.2, 1.0
END_SECONDS = 30.0  # for a kill
DRIVER, STORE = "driver", "object store"
COORDINATORS = (
    r"TrainController|Board|DatasetManager|\w*Coordinator\w*|PlacementGroupCleaner|Synchronization\w*|\w*Stats\w*"
)
KINDS = {  # the first whose pattern is found in the command line
    "raylet": r"^\S*/raylet/raylet ",  # its arguments contain paths that match the kinds below
    "GCS": r"^\S*/gcs/gcs_server ",
    "train worker": r"^ray::RayTrainWorker",
    "Ray's own": r"ray/dashboard|ray/_private|ray/autoscaler|ray-dashboard|ray\.dashboard|^ray::\w*Agent\b",
    "coordinator": rf"^ray::({COORDINATORS})\b",
    "task or actor": r"^ray::",
}
OTHER = "other"

Lines = list[tuple[float, str]]
"""What a command printed, each with the seconds since its start."""


class Rss(NamedTuple):
    """Memory of a process, or of several, in bytes."""

    private: int
    shared: int


@dataclass
class Peak:
    """Peak memory of a kind of process in bytes: of the largest single one, and of all in a sample together."""

    private: int = 0
    shared: int = 0
    private_of_all: int = 0
    processes: int = 0
    largest: str = ""
    """Title of the process that had most for itself."""

    def include(self, processes: Mapping[str, list[Rss]]) -> None:
        """Take in a sample: processes by title."""
        everything = [rss for found in processes.values() for rss in found]
        for title, found in processes.items():
            if (most := max(rss.private for rss in found)) > self.private:
                self.private, self.largest = most, title
        self.shared = max(self.shared, *(rss.shared for rss in everything))
        self.private_of_all = max(self.private_of_all, sum(rss.private for rss in everything))
        self.processes = max(self.processes, len(everything))


Peaks = dict[str, dict[str, Peak]]
"""By phase of a command, and by kind of process."""


def kind_of(command_line: str) -> str:
    """The kind of a process below a driver."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, command_line)), OTHER)


def sample(pid: int, phase: str, peaks: Peaks) -> None:
    """Take the memory of a process and of all below it into the peaks."""
    found: dict[str, dict[str, list[Rss]]] = {}
    for process in [psutil.Process(pid), *family(pid)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError, KeyError):
            line, rss = " ".join(process.cmdline()), rss_of(process.pid)
            kind = DRIVER if process.pid == pid else kind_of(line)
            found.setdefault(kind, {}).setdefault(line[:80].strip(), []).append(rss)
            if kind == "raylet":
                found[STORE] = {STORE: [Rss(0, store_bytes(process.pid))]}
    for kind, processes in found.items():
        peaks.setdefault(phase, {}).setdefault(kind, Peak()).include(processes)


def rss_of(pid: int) -> Rss:
    """Private and shared memory of a process.

    Raises
    ------
    OSError, KeyError
        When it has ended.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    values = dict(re.findall(r"^(Rss\w+):\s+(\d+) kB$", status, re.MULTILINE))
    return Rss(int(values["RssAnon"]) * 1024, int(values["RssShmem"]) * 1024)


def store_bytes(pid: int) -> int:
    """What a raylet's object store takes in shared memory or on disk; freed pages stay with it."""
    files = [link for link in Path(f"/proc/{pid}/fd").iterdir() if "plasma" in os.readlink(link)]
    return sum(link.stat().st_blocks * 512 for link in files)


def family(pid: int) -> list[psutil.Process]:
    """The descendants of a process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def kill(process: subprocess.Popen[bytes]) -> None:
    """Send signal 9 to a command's group and to all its descendants, and wait until they have ended."""
    doomed = family(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for victim in doomed:
        for one in [*family(victim.pid), victim]:  # also what it has started since
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    psutil.wait_procs(doomed, END_SECONDS)
    process.wait(END_SECONDS)


class Tail:
    """The lines that are appended to a file from now on."""

    def __init__(self, file: Path) -> None:
        self.file, self.at, self.rest = file, file.stat().st_size, ""

    def lines(self) -> list[str]:
        """The whole lines since the last call."""
        with self.file.open("rb") as stream:
            stream.seek(self.at)
            new = stream.read()
        self.at += len(new)
        *lines, self.rest = (self.rest + new.decode(errors="replace")).split("\n")
        return lines


class Command:
    """A command, started once; an interrupt of this process ends it too.

    Parameters
    ----------
    arguments : sequence of str
    log : Path
        Its output is appended to it.
    environment : mapping of str
        Added to that of this process.
    peaks : dict
        Its memory is added to them, every second.

    Attributes
    ----------
    lines : list of (float, str)
        What it has printed until now.
    seconds : float
    status : int or None
        None if it did not end by itself.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str], peaks: Peaks) -> None:
        self.arguments, self.environment, self.peaks = arguments, {**os.environ, **environment}, peaks
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self.log, self.tail = log, Tail(log)
        self.lines: Lines = []
        self.started, self.seconds = 0.0, 0.0
        self.status: int | None = None

    def run(
        self, phase: Callable[[Lines], str] = lambda lines: "", doomed: Callable[[Lines], bool] = lambda lines: False
    ) -> int | None:
        """Run it to its end and return its status, or kill it as soon as its lines make it `doomed`.

        `phase` says from its lines in which phase it is; memory is kept by phase.
        """
        process, next_sample = self._start(), 0.0
        try:
            while process.poll() is None and not doomed(self.lines):
                if (now := time.monotonic()) >= next_sample:
                    sample(process.pid, phase(self.lines), self.peaks)
                    next_sample = now + SAMPLE_SECONDS
                time.sleep(POLL_SECONDS)
                self._read()
            self.status = process.returncode
        finally:
            if self.status is None:
                kill(process)
            self._read()
        return self.status

    def _start(self) -> subprocess.Popen[bytes]:
        self.started = time.monotonic()
        with self.log.open("ab") as out:
            return subprocess.Popen(
                self.arguments, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=self.environment
            )

    def _read(self) -> None:
        self.seconds = time.monotonic() - self.started
        self.lines += [(self.seconds, line) for line in self.tail.lines()]
