"""Copies of spools in a run's remote storage.

A spool lies on the disk of the node that writes it. If the storage is remote, that node may be lost together with the
records that wait for MLflow, so the spool is copied into the run's folder, as one archive for each machine.
"""

from __future__ import annotations

import logging
import platform
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from pipeline.storage import Folder
from pipeline.tracking.diagnosis import summary_of
from pipeline.tracking.run import RunRef
from pipeline.tracking.spool import Spool, spool_path

COPY = "mlflow-spool-"  # prefix of the archives' names

_logger = logging.getLogger(__name__)


def keep_copy(spool: Spool, ref: RunRef) -> None:
    """Copy a spool into the run's remote folder, or delete its copy when nothing waits; a failure is logged."""
    if not ref.remote:
        return
    try:
        folder = Folder(ref.remote)
        if spool.pending:
            folder.write_bytes(_name(spool.path), _packed(spool))
        else:
            folder.delete(_name(spool.path))
    except Exception as error:
        _logger.warning(
            "records that wait for MLflow could not be copied to the run's folder and are only on this node, in %s: %s",
            spool.path,
            summary_of(error),
        )


def records_wait(folder: Folder) -> bool:
    """Whether records of a run wait on this machine or in its remote folder."""
    path = spool_path(folder)
    return bool(path.exists() and Spool(path).pending) or bool(_copies(folder))


def waiting_spools(folder: Folder) -> Iterator[Spool]:
    """The spool of this machine, then the copies of others; a copy is deleted once its spool is empty."""
    path = spool_path(folder)
    if path.exists():
        yield (spool := Spool(path))
        if not folder.is_local and not spool.pending:
            folder.delete(_name(path))
    for name in _copies(folder):
        if name == _name(path) and path.exists():
            continue
        with TemporaryDirectory() as place:
            yield (spool := _unpacked(folder, name, Path(place), path.name))
            if not spool.pending:
                folder.delete(name)


def _copies(folder: Folder) -> list[str]:
    return [] if folder.is_local else folder.names(COPY)


def _name(spool: Path) -> str:
    """Name of a spool's copy: its machine, and its folder there."""
    return f"{COPY}{platform.node()}-{spool.parent.name}.tar"


def _packed(spool: Spool) -> bytes:
    with TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for part in spool.parts():
                archive.add(part, part.name)
        file.seek(0)
        return file.read()


def _unpacked(folder: Folder, name: str, place: Path, spool: str) -> Spool:
    with (
        folder.files.open_input_stream(f"{folder.root}/{name}") as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        archive.extractall(place, filter="data")
    return Spool(place / spool)
