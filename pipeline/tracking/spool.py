"""The spool: what waits on disk until the server has confirmed it."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.storage import Folder

Status = Literal["FINISHED", "FAILED", "KILLED"]

_logger = logging.getLogger(__name__)


class Point(NamedTuple):
    """One metric value; `timestamp` in milliseconds since 1970, kept so that sending twice sends the same."""

    key: str
    step: int
    value: float
    timestamp: int


class Spool:
    """What the server has not confirmed: points and the final status in a JSONL file, files in a folder beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points: dict[tuple[str, int], Point] = {}
        self.status: tuple[str, int] | None = None
        self._folder = path.with_suffix(".files")
        self._folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read()
        self.save()  # without damaged lines, and existing: `deliver` can tell an empty spool from a wrong path

    @property
    def pending(self) -> int:
        """Points and files that wait, and one for the status."""
        return len(self.points) + len(self.files()) + (self.status is not None)

    def add(self, points: list[Point]) -> None:
        """Append points; a (key, step) that already waits keeps its first value."""
        fresh = {point[:2]: point for point in points if point[:2] not in self.points}
        self.points |= fresh
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(point) + "\n" for point in fresh.values())

    def add_file(self, path: Path, folder: str) -> None:
        """Copy a file or folder; a file appears in the spool whole or not at all."""
        for source in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            target = self._folder / folder / source.relative_to(path.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            shutil.copyfile(source, part)
            part.replace(target)

    def files(self) -> list[tuple[Path, str]]:
        """The copies that wait, each with the artifact folder it goes to ("" is the run's root)."""
        found = sorted(path for path in self._folder.rglob("*") if path.is_file())
        return [(path, path.parent.relative_to(self._folder).as_posix().removeprefix(".")) for path in found]

    def end(self, status: Status) -> None:
        """Note how the run ended, and when."""
        self.status = (status, int(time.time() * 1000))
        self.save()

    def save(self) -> None:
        """Write the file anew from what is still pending."""
        part = self.path.with_suffix(".part")
        rows: list[tuple[Any, ...]] = [*self.points.values(), *([self.status] if self.status else [])]
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        part.replace(self.path)

    def _read(self) -> None:
        for number, line in enumerate(self.path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            try:
                row = json.loads(line)
                if len(row) == 2:
                    self.status = (row[0], row[1])
                else:
                    self.points[row[0], row[1]] = Point(*row)
            except (ValueError, TypeError):  # the process died while it wrote this line
                _logger.warning("%s line %d is damaged and left out: %.100r", self.path, number, line)


def spool_path(folder: Folder) -> Path:
    """Where MLflow's points wait: in the folder, or on this machine when the folder is not local."""
    base = Path(folder.root) if folder.is_local else Path(tempfile.gettempdir(), "digpro", folder.name)
    return base / "mlflow-spool.jsonl"
