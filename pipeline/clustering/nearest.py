"""The nearest centre by cosine, and by how much it is nearer than the next: rows against centres, in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Products held at a time: on a CPU 1 MiB of float32, which stays in a core's cache; on a GPU enough to fill it.
CHUNK_VALUES, GPU_CHUNK_VALUES = 1 << 18, 1 << 26


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
    similarity = features.new_empty(len(features))
    for rows, dots in dot_chunks(features, centers):
        similarity[rows], labels[rows] = dots.max(dim=1)
    return Nearest(labels, similarity / _lengths(features))


def center_margin(features: Tensor, centers: Tensor) -> Tensor:
    """Cosine to the nearest centre minus cosine to the second nearest (n,), in [0, 2], of rows (n, D).

    ValueError when there is only one of the centers (K, D).
    """
    if len(centers) == 1:
        raise ValueError("centers has 1 row; give at least 2: a margin compares the nearest with the next")
    margin = features.new_empty(len(features))
    for rows, dots in dot_chunks(features, centers):
        best, second = dots.topk(2, dim=1).values.T
        margin[rows] = best - second
    return margin / _lengths(features)


def dot_chunks(features: Tensor, centers: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Products (m, K) of features (n, D) with the directions of centers (K, D), for consecutive slices of rows.

    They are cosines where the rows are unit vectors.
    """
    directions = F.normalize(centers, dim=1).T
    step = max(1, (CHUNK_VALUES if features.device.type == "cpu" else GPU_CHUNK_VALUES) // len(centers))
    for start in range(0, len(features), step):
        rows = slice(start, start + step)
        yield rows, features[rows] @ directions


def _lengths(features: Tensor) -> Tensor:
    """Lengths (n,) of rows (n, D); those of zero rows are taken as tiny, as in F.normalize."""
    return features.norm(dim=1).clamp(min=1e-12)
