"""A worker's way to the cached features: into its memory, or into a file that the workers of its node share."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.collectives import all_sum
from pipeline.errors import DataError
from pipeline.features.cache import FeatureCache, read_features
from pipeline.storage import Folder


def load_features(
    folder: Folder, cache: FeatureCache, device: torch.device, *, limit_gb: float, first_on_node: bool
) -> Tensor:
    """The features (N, 1 + V, F) float16: on `device` up to `limit_gb` GiB, else mapped from a file.

    All workers call it. On each node `first_on_node` writes the file; it has no name once all have mapped it, so that
    nothing is left when they end, however they end.

    Raises
    ------
    DataError
        When a part is damaged, or the node's disk has no room.
    """
    shape = (cache.num_images, cache.views, cache.feature_size)
    if cache.bytes <= limit_gb * 2**30:
        resident = np.empty(shape, np.float16)
        read_features(folder, cache, resident)
        return torch.from_numpy(resident).to(device)
    path = Path(tempfile.gettempdir(), f"digpro-features-{os.getuid()}-{cache.key.digest}")
    if first_on_node:
        _check_room(path.parent, cache.bytes)
        read_features(folder, cache, np.memmap(path, np.float16, "w+", shape=shape))
    _wait_for_all(device)
    mapped = torch.from_numpy(np.memmap(path, np.float16, "r+", shape=shape))
    _wait_for_all(device)
    if first_on_node:
        path.unlink()
    return mapped


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DataError(
            f"the cached features take {size / 2**30:.1f} GiB and {folder} has {free / 2**30:.1f} GiB free; set TMPDIR "
            "to a larger disk, or lower views.cached"
        )


def _wait_for_all(device: torch.device) -> None:
    """A barrier over the workers."""
    all_sum(torch.zeros((), device=device)).item()
