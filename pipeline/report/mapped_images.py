"""The map, the nearest neighbours, and the table that the tool Embedding Atlas reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from pipeline.clustering.neighbours import nearest_rows
from pipeline.report.choice import Assignments
from pipeline.report.layout import Layout, lay_out
from pipeline.report.sprites import Pictures, jpeg

NEIGHBOURS = 15
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class MappedImages:
    """The first n images of a data set.

    Attributes
    ----------
    features : Tensor (n, D)
        Rows of length 1.
    layout : Layout
        Their places (n, 2) on the map.
    neighbours, similarity : ndarray (n, k)
        Indices of the nearest images and their cosines.
    """

    features: Tensor
    layout: Layout
    neighbours: Array
    similarity: Array

    def __len__(self) -> int:
        return len(self.features)


def map_images(features: Tensor) -> MappedImages:
    """Map and neighbours of unit features (n, D); all similarities are computed."""
    found, similarity = nearest_rows(features, 0, len(features), min(NEIGHBOURS, len(features) - 1))
    return MappedImages(features, lay_out(features), found.numpy(), similarity.numpy())


def embedding_table(
    images: Assignments, mapped: MappedImages, names: Mapping[int, str], rows: Array, pictures: Pictures
) -> pa.Table:
    """The mapped images in the form that Embedding Atlas reads: neighbours are row numbers.

    Parameters
    ----------
    names : dict
        Number of a cluster -> its name.
    rows : int64 ndarray (R,)
        Indices of images; the first T have `pictures`.
    """
    count = len(mapped)
    thumbnails: list[dict[str, bytes] | None] = [None] * len(images)
    for row, tile, aspect in zip(rows, pictures.tiles, pictures.aspects, strict=False):
        thumbnails[row] = {"bytes": jpeg(tile, float(aspect))}
    places, distances = mapped.layout.places, np.maximum(1 - mapped.similarity, 0)
    neighbours = pa.StructArray.from_arrays([_lists(mapped.neighbours), _lists(distances)], ["ids", "distances"])
    return pa.table(
        {
            "index": np.arange(count),
            "path": pa.array(images.path[:count], pa.string()),
            "x": places[:, 0],
            "y": places[:, 1],
            "cluster": images.cluster[:count],
            "name": cluster_names(images.cluster[:count], names),
            **({} if images.label is None else {"label": images.label[:count]}),
            "similarity": images.similarity[:count],
            "margin": images.margin[:count],
            "outlier": images.outlier[:count],
            "thumbnail": pa.array(thumbnails[:count], pa.struct([("bytes", pa.binary())])),
            "neighbors": neighbours,
        }
    )


def cluster_names(cluster: Array, names: Mapping[int, str]) -> pa.Array:
    """The name of each row's cluster; null without one."""
    return pa.array([names.get(int(number)) for number in cluster], pa.string())


def _lists(values: Array) -> pa.ListArray:
    """A list of k values for each row of (n, k)."""
    rows, size = values.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * size), pa.array(values.reshape(-1)))


def alike(mapped: MappedImages, chosen: Sequence[int] | Array, count: int) -> Array:
    """For each chosen image the `count` most similar of the other chosen ones, as positions in `chosen`.

    Returns
    -------
    int64 ndarray (len(chosen), count)
        -1 where there is none: for images that are not mapped, or with fewer than `count` others.
    """
    chosen = np.asarray(chosen)
    inside = np.flatnonzero(chosen < len(mapped))
    found = np.full((len(chosen), count), -1)
    least = min(count, len(inside) - 1)
    if least > 0:
        near = nearest_rows(mapped.features[chosen[inside]], 0, len(inside), least)[0].numpy()
        found[inside, :least] = inside[near]
    return found
