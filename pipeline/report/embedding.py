"""Images among images: the map, the nearest neighbours, and the table that the tool Embedding Atlas reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from pipeline.features.neighbours import nearest_rows
from pipeline.report.choice import Assignments
from pipeline.report.projection import Projection, project

NEIGHBOURS = 15
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Embedding:
    """The first n images of a data set.

    Attributes
    ----------
    features : Tensor (n, D)
        Rows of length 1.
    projection : Projection
        Their places (n, 2) on the map.
    neighbours, similarity : ndarray (n, k)
        Indices of the nearest images and their cosines.
    """

    features: Tensor
    projection: Projection
    neighbours: Array
    similarity: Array

    def __len__(self) -> int:
        return len(self.features)


def embed(features: Tensor) -> Embedding:
    """Map and neighbours of unit features (n, D); all similarities are computed."""
    found, similarity = nearest_rows(features, 0, len(features), min(NEIGHBOURS, len(features) - 1))
    return Embedding(features, project(features), found.numpy(), similarity.numpy())


def embedding_table(images: Assignments, embedding: Embedding) -> pa.Table:
    """The images of the embedding, in the form that Embedding Atlas reads: its neighbours are numbers of rows."""
    count = len(embedding)
    places, distances = embedding.projection.places, np.maximum(1 - embedding.similarity, 0)
    neighbours = pa.StructArray.from_arrays([_lists(embedding.neighbours), _lists(distances)], ["ids", "distances"])
    return pa.table(
        {
            "index": np.arange(count),
            "path": pa.array(images.path[:count], pa.string()),
            "x": places[:, 0],
            "y": places[:, 1],
            "cluster": images.cluster[:count],
            "similarity": images.similarity[:count],
            "neighbors": neighbours,
        }
    )


def _lists(values: Array) -> pa.ListArray:
    """A list of k values for each row of (n, k)."""
    rows, size = values.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * size), pa.array(values.reshape(-1)))


def alike(embedding: Embedding, chosen: Sequence[int] | Array, count: int) -> Array:
    """For each chosen image the `count` most similar of the other chosen ones, as their places in `chosen`.

    Returns
    -------
    int64 ndarray (len(chosen), count)
        -1 where there is none: beside images that are not in the embedding, or with fewer than `count` others.
    """
    chosen = np.asarray(chosen)
    inside = np.flatnonzero(chosen < len(embedding))
    found = np.full((len(chosen), count), -1)
    least = min(count, len(inside) - 1)
    if least > 0:
        near = nearest_rows(embedding.features[chosen[inside]], 0, len(inside), least)[0].numpy()
        found[inside, :least] = inside[near]
    return found
