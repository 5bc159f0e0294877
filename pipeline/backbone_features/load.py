"""Loads cached backbone features for a worker: into its memory, or into a file that the workers of its node share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from pipeline.backbone_features.cache import FeatureCache, read_backbone_features
from pipeline.collectives import all_sum, from_rank_zero
from pipeline.errors import DataError, first_line
from pipeline.storage import Folder

PREFIX = "digpro-features-"


def load_backbone_features(
    folder: Folder, cache: FeatureCache, device: torch.device, *, limit_gb: float, first_on_node: bool
) -> Tensor:
    """The backbone features (N, 1 + V, F) float16: on `device` up to `limit_gb` GiB, else mapped from a file.

    All workers call it. On each node the worker with `first_on_node` writes the file. Its name is removed once all have
    mapped it, so that nothing is left when they end, however they end.

    Raises
    ------
    DataError
        When a part is damaged, or the node's disk has no room.
    """
    shape = (cache.num_images, cache.views, cache.feature_size)
    if cache.bytes <= limit_gb * 2**30:
        resident = np.empty(shape, np.float16)
        read_backbone_features(folder, cache, resident)
        return torch.from_numpy(resident).to(device)
    path = _own_path(device)
    with _locked_file(path, cache.bytes) if first_on_node else contextlib.nullcontext():
        if first_on_node:
            read_backbone_features(folder, cache, np.memmap(path, np.float16, "r+", shape=shape))
        _wait_for_all(device)
        mapped = torch.from_numpy(np.memmap(path, np.float16, "r+", shape=shape))
        _wait_for_all(device)
    return mapped


def _own_path(device: torch.device) -> Path:
    """A path that only these workers share: other trials on a node may map the same features."""
    number = from_rank_zero(torch.tensor(secrets.randbits(62), device=device))
    return Path(tempfile.gettempdir(), f"{PREFIX}{os.getuid()}-{int(number):016x}")


@contextlib.contextmanager
def _locked_file(path: Path, size: int) -> Iterator[None]:
    """A file of this size; its name is removed after the block. Files that killed workers left are deleted first."""
    _delete_leftovers(path.parent)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix="digpro-", delete=False) as file:
        try:
            _lock(file)
            os.rename(file.name, path)  # only now, so that a file with such a name is locked or left over
            _reserve(file, size)
            yield
        finally:
            for name in (path, Path(file.name)):
                name.unlink(missing_ok=True)


def _delete_leftovers(folder: Path) -> None:
    """Delete the files of this user that no process has locked: their workers were killed while they wrote."""
    for path in folder.glob(f"{PREFIX}{os.getuid()}-*"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            _lock(file)
            path.unlink()


def _lock(file: IO[bytes]) -> None:
    """Lock a file until it is closed, also by a kill; BlockingIOError if another process holds the lock."""
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _reserve(file: IO[bytes], size: int) -> None:
    """Reserve the disk space now: a write to a mapped file that finds none kills the process."""
    folder = os.path.dirname(file.name)
    free = shutil.disk_usage(folder).free
    try:
        if free < size:
            raise OSError(f"{free / 2**30:.1f} GiB free")
        if sys.platform == "linux":  # macOS has no such call
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise DataError(
            f"the cached features take {size / 2**30:.1f} GiB, but {folder} has no room ({first_line(error)}); set "
            "TMPDIR to a larger disk, or lower views.cached"
        ) from None


def _wait_for_all(device: torch.device) -> None:
    """A barrier over the workers."""
    all_sum(torch.zeros((), device=device)).item()
