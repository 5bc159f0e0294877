"""The spool: records that wait on disk until the store has confirmed them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.storage import Folder
from pipeline.tracking.store import locked

PART = ".part"  # suffix of what is being written
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_logger = logging.getLogger(__name__)


def spool_path(folder: Folder) -> Path:
    """The spool of a run: in its folder, or in this machine's temporary folder when that is remote.

    There its path depends on the user and on the folder's whole address, so that runs of the same name in two storages
    have two spools.
    """
    if folder.is_local:
        return Path(folder.root, "mlflow-spool.jsonl")
    place = f"{folder.name}-{hashlib.sha256(folder.path.encode()).hexdigest()[:8]}"
    return Path(tempfile.gettempdir(), f"digpro-{os.getuid()}", place, "mlflow-spool.jsonl")


class MetricPoint(NamedTuple):
    """One metric value; `timestamp` in milliseconds since 1970, kept so that sending twice sends the same."""

    key: str
    step: int
    value: float
    timestamp: int


class End(NamedTuple):
    """How a run ended.

    Attributes
    ----------
    status : RunStatus
    ended : int
        Milliseconds since 1970.
    attempt : str
        The attempt (of `RunRef`) that ended: the end of an earlier attempt is ignored.
    by_driver : bool
        The driver's status replaces that of a worker.
    """

    status: RunStatus
    ended: int
    attempt: str
    by_driver: bool


class Spool:
    """What the store has not confirmed: points, tags and the final status in a JSONL file, files in a folder beside it.

    The files on disk are authoritative and every change holds a lock, so the driver can end a run or deliver its
    records while a writer in a worker is still alive, and one thread can send while another adds. Two processes may
    send the same point, which is harmless: it is the same to the millisecond.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points: dict[tuple[str, int], MetricPoint] = {}
        self.tags: dict[str, str] = {}
        self.end: End | None = None
        self._threads = threading.RLock()
        self._folder = path.with_suffix(".files")
        self._models = path.with_suffix(".models")
        for folder in (self._folder, self._models):
            folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._read()
            self._write()  # without damaged lines

    @property
    def pending(self) -> int:
        """Points, tags, files and models that wait, and one for the status."""
        waiting: list[Collection[Any]] = [self.points, self.tags, self.files(), self.models()]
        return sum(len(records) for records in waiting) + (self.end is not None)

    def parts(self) -> tuple[Path, ...]:
        """All that it keeps on disk."""
        return self.path, self._folder, self._models

    def reload(self) -> None:
        """Take over what other processes have added or delivered."""
        with self._locked():
            self._read()

    def add(self, points: Iterable[MetricPoint]) -> None:
        """Append points; a (key, step) that already waits keeps its first value."""
        with self._locked(), self.path.open("a", encoding="utf-8") as file:
            fresh = {point[:2]: point for point in points if point[:2] not in self.points}
            self.points |= fresh
            file.writelines(_line(point) for point in fresh.values())

    def confirm(self, points: Iterable[MetricPoint]) -> None:
        """Forget points that have arrived."""
        with self._locked():
            self._read()
            for point in points:
                self.points.pop((point.key, point.step), None)
            self._write()

    def set_tag(self, key: str, value: str) -> None:
        """Note a tag in place of its earlier value."""
        with self._locked():
            self._read()
            self.tags[key] = value
            self._write()

    def confirm_tags(self, tags: Mapping[str, str]) -> None:
        """Forget tags that have arrived, except those that were set anew in the meantime."""
        with self._locked():
            self._read()
            self.tags = {key: value for key, value in self.tags.items() if tags.get(key) != value}
            self._write()

    def add_file(self, path: Path, folder: str) -> None:
        """Copy a file or folder; a file appears in the spool whole or not at all."""
        for source in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            target = self._folder / folder / source.relative_to(path.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(PART)
            with self._locked():
                shutil.copyfile(source, part)
                part.replace(target)

    def files(self) -> list[tuple[Path, str]]:
        """The copies that wait, each with the artifact folder it goes to ("" is the run's root)."""
        found = sorted(path for path in self._folder.rglob("*") if path.is_file())
        return [(path, path.parent.relative_to(self._folder).as_posix().removeprefix(".")) for path in found]

    def add_model(self, folder: Path) -> None:
        """Copy a folder that holds an MLflow model; it appears in the spool whole or not at all."""
        target = self._models / folder.name
        part = target.with_suffix(PART)
        with self._locked():
            for old in (part, target):
                shutil.rmtree(old, ignore_errors=True)
            shutil.copytree(folder, part)
            part.rename(target)

    def models(self) -> list[Path]:
        """The copies of models that wait; a model has the name of its folder."""
        return sorted(path for path in self._models.iterdir() if path.suffix != PART)

    def waiting_points(self) -> list[MetricPoint]:
        """The points that wait now."""
        with self._threads:
            return list(self.points.values())

    def set_end(self, end: End | None, *, unless_known: bool = False) -> None:
        """Note how the run ended, or forget it; `unless_known` keeps what another process has noted."""
        with self._locked():
            self._read()
            if not (unless_known and self.end):
                self.end = end
                self._write()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._threads, locked(self._folder):
            yield

    def _read(self) -> None:
        self.points, self.tags, self.end = {}, {}, None
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                row = json.loads(line or "[]")
                if len(row) == 2:
                    self.end = End(*row[1])
                elif len(row) == 3:
                    self.tags[str(row[1])] = str(row[2])
                elif row:
                    self.points[row[0], row[1]] = MetricPoint(*row)
            except (ValueError, TypeError):  # the process died while it wrote this line
                _logger.warning("%s line %d is damaged and was skipped: %.100r", self.path, number, line)

    def _write(self) -> None:
        part = self.path.with_suffix(PART)
        tags = [("tag", key, value) for key, value in self.tags.items()]
        rows: list[tuple[Any, ...]] = [*self.points.values(), *tags, *([("end", self.end)] if self.end else [])]
        part.write_text("".join(_line(row) for row in rows), encoding="utf-8")
        part.replace(self.path)


def _line(row: tuple[Any, ...]) -> str:
    """A row of the file; it begins a new line, since a killed process may have left half of one."""
    return f"\n{json.dumps(row)}"
