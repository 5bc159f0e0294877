"""The nearest neighbours of every image by the features of a frozen backbone, found once for a cache.

Images are compared by a weighted mean of all their views, which says more about what they show than any single one. Up
to `EXACT_IMAGES` images the search is exact, split among tasks; above that it is approximate, by an inverted file of
faiss.
"""

from __future__ import annotations

import importlib
import io
import math
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbone_features.cache import CachePart, FeatureCache, Half, read_cache, read_part
from pipeline.clustering.neighbours import nearest_rows
from pipeline.data.tasks import run_each
from pipeline.errors import ConfigError, how_to_install
from pipeline.method.encoder import Standardize
from pipeline.storage import Folder

EXACT_IMAGES = 100_000
TASK_IMAGES = 5_000  # queries per task
UNAUGMENTED = 2 / 3  # weight of the un-augmented view; the augmented ones share the rest (docs/backbones.md)
TRAIN_PER_LIST, PROBES = 40, 32  # of faiss's inverted file: training images per list, and lists searched per query
Rows = np.ndarray[Any, np.dtype[np.int64]]


def ensure_neighbours(folder: Folder, cache: FeatureCache, count: int) -> None:
    """Find the `count` nearest images of every image by cosine similarity, and keep them in the cache's folder.

    Raises
    ------
    ConfigError
        When there are too few other images, or too many images for exact search and faiss is not installed.
    """
    if count >= cache.num_images:
        raise ConfigError(
            f"views.neighbours={count} must be less than the number of images, {cache.num_images}; lower it"
        )
    if _file(count) in folder.names("neighbours-"):
        return
    find = exact_neighbours if cache.num_images <= EXACT_IMAGES else approximate_neighbours
    buffer = io.BytesIO()
    np.save(buffer, find(folder, cache, count))
    folder.write_bytes(_file(count), buffer.getvalue())


def complete_neighbours(folder: Folder, count: int) -> None:
    """Find the neighbours for a complete cache; do nothing for a count of 0."""
    cache = read_cache(folder)
    if count and cache is not None:
        ensure_neighbours(folder, cache, count)


def read_neighbours(folder: Folder, count: int, device: torch.device) -> Tensor | None:
    """The neighbours (N, count), nearest first and never the image itself; None for a count of 0."""
    if count == 0:
        return None
    return torch.from_numpy(np.load(io.BytesIO(folder.read_bytes(_file(count))))).to(device)


def _file(count: int) -> str:
    return f"neighbours-{count}-by-mean.npy"  # earlier versions compared the un-augmented views


class ComparedFeatures:
    """Unit rows by which the images of a cache are compared; the features are standardised, as the heads get them."""

    def __init__(self, folder: Folder, cache: FeatureCache, unaugmented: float = UNAUGMENTED) -> None:
        self.folder, self.cache = folder, cache
        self.weights = torch.full((cache.views, 1), (1 - unaugmented) / max(cache.views - 1, 1))
        self.weights[0] = unaugmented
        self.standardize = Standardize(cache.feature_size)
        self.standardize.fit(self._means(part) for part in cache.parts)

    def of(self, part: CachePart) -> Tensor:
        """Rows (n, F) of a part's images."""
        return F.normalize(self.standardize(self._means(part)), dim=1)

    def _means(self, part: CachePart) -> Tensor:
        """(n, F): the weighted mean of the unit vectors of each image's views."""
        views = torch.from_numpy(read_part(self.folder, part, self.cache).astype(np.float32))
        return (F.normalize(views, dim=2) * self.weights).sum(1)


def exact_neighbours(folder: Folder, cache: FeatureCache, count: int, unaugmented: float = UNAUGMENTED) -> Rows:
    """Exact search over all similarities, split among tasks on Ray if it is initialised."""
    compared = ComparedFeatures(folder, cache, unaugmented)
    features = np.empty((cache.num_images, cache.feature_size), np.float16)
    for part in cache.parts:
        features[part.first_index : part.first_index + part.rows] = compared.of(part).numpy()
    starts = range(0, cache.num_images, TASK_IMAGES)
    shared: Any = ray.put(features) if len(starts) > 1 and ray.is_initialized() else features  # once for all tasks
    calls = [(shared, start, min(start + TASK_IMAGES, cache.num_images), count) for start in starts]
    found = np.empty((cache.num_images, count), np.int64)
    for start, rows in run_each(_nearest_rows, calls):
        found[start : start + len(rows)] = rows
    return found


def _nearest_rows(features: Half, start: int, stop: int, count: int) -> tuple[int, Rows]:
    """The neighbours of images `start` to `stop - 1`."""
    unit = F.normalize(torch.from_numpy(features.astype(np.float32)), dim=1)
    return start, nearest_rows(unit, start, stop, count)[0].numpy()


def approximate_neighbours(folder: Folder, cache: FeatureCache, count: int) -> Rows:
    """Search by faiss: an inverted file over features in float16, which takes as much memory as one view of all."""
    faiss, images = _import_faiss(cache.num_images), cache.num_images
    compared, lists = ComparedFeatures(folder, cache), int(4 * math.sqrt(images))
    index = faiss.index_factory(cache.feature_size, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    # about so many images: of the first parts, which are a fair sample because ingest shuffles
    index.train(np.concatenate([compared.of(p).numpy() for p in cache.parts if p.first_index < lists * TRAIN_PER_LIST]))
    for part in cache.parts:
        index.add(compared.of(part).numpy())
    index.nprobe = min(PROBES, lists)
    found = np.empty((images, count), np.int64)
    for part in cache.parts:
        own = np.arange(part.first_index, part.first_index + part.rows)
        found[own] = _without_itself(index.search(compared.of(part).numpy(), count + 1)[1], own)
    return found


def _import_faiss(images: int) -> Any:
    try:
        return importlib.import_module("faiss")
    except ModuleNotFoundError:
        raise ConfigError(
            f"views.neighbours needs faiss for more than {EXACT_IMAGES:,} images, and there are {images:,}; "
            f"{how_to_install('faiss')}, or set views.neighbours=0"
        ) from None


def _without_itself(found: Rows, own: Rows) -> Rows:
    """Reduce (n, k+1) neighbours to (n, k): drop the image itself, or the last one if it was not found.

    If the searched lists have too few neighbours, the image itself fills the other places.
    """
    found = np.where(found < 0, own[:, None], found)
    is_other = found != own[:, None]
    order = np.argsort(~is_other, axis=1, kind="stable")  # the others first, in their order
    return np.take_along_axis(found, order, axis=1)[:, :-1]
