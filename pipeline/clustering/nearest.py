"""The nearest centre by cosine, and its margin over the next nearest: rows against centres, in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Products held at a time: on a CPU 4 MiB of float32, which stays in its caches; on a GPU enough to fill it.
CHUNK_VALUES, GPU_CHUNK_VALUES = 1 << 20, 1 << 26
LEAST_ROWS = 64  # fewer waste a matrix product, however many columns it has


class Nearest(NamedTuple):
    """The nearest centre of each row: its number, labels (n,) int64, and the cosine to it, similarity (n,)."""

    labels: Tensor
    similarity: Tensor


def nearest_center(features: Tensor, centers: Tensor) -> Nearest:
    """The centre of largest cosine for each row; the lowest number on ties.

    Parameters
    ----------
    features : Tensor (n, D)
        Rows of any length; the similarity of a zero row is 0.
    centers : Tensor (K, D)
        Of any length; one that is zero has cosine 0 to every row.
    """
    labels = torch.empty(len(features), dtype=torch.int64, device=features.device)
    similarity = row_lengths(features).reciprocal_()
    for rows, dots in dot_chunks(features, centers):
        best, labels[rows] = dots.max(dim=1)
        similarity[rows] *= best
    return Nearest(labels, similarity)


def center_margin(features: Tensor, centers: Tensor) -> Tensor:
    """Cosine to the nearest centre minus cosine to the second nearest (n,), in [0, 2], of rows (n, D).

    ValueError when there is only one of the centres (K, D).
    """
    if len(centers) == 1:
        raise ValueError("centers has 1 row; give at least 2: a margin compares the nearest with the next")
    margin = row_lengths(features).reciprocal_()
    for rows, dots in dot_chunks(features, centers):
        best, second = dots.topk(2, dim=1).values.T
        margin[rows] *= best - second
    return margin


def dot_chunks(features: Tensor, centers: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Products (m, K) of features (n, D) with the directions of centres (K, D), for consecutive slices of rows.

    They are cosines where the rows are unit vectors.
    """
    directions = F.normalize(centers, dim=1).T
    for rows in chunks(features, len(centers)):
        yield rows, features[rows].to(directions.dtype) @ directions


def chunks(features: Tensor, columns: int) -> Iterator[slice]:
    """Consecutive slices of rows (n, D), so small that neither they nor their products with `columns` fill a cache."""
    values = CHUNK_VALUES if features.device.type == "cpu" else GPU_CHUNK_VALUES
    step = max(LEAST_ROWS, values // max(columns, 2 * features.shape[1]))  # some are held twice as wide, for sums
    for start in range(0, len(features), step):
        yield slice(start, min(start + step, len(features)))


def row_lengths(features: Tensor) -> Tensor:
    """Lengths (n,) of rows (n, D), at least float32; those of zero rows are taken as tiny, as in F.normalize."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    lengths = torch.empty(len(features), dtype=dtype, device=features.device)
    for rows in chunks(features, 1):
        torch.linalg.vector_norm(features[rows], dim=1, dtype=dtype, out=lengths[rows])
    return lengths.clamp_(min=1e-12)
