"""From features to places on a map: two coordinates for every image, and a cell of a grid for every cluster."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

FIT_ROWS = 10_000  # that UMAP learns from; more take minutes and show the same
TSNE_ROWS = 6_000  # that t-SNE places: those on the page
TSNE_STEPS = 500  # a fixed number, because a limit in seconds would give another map on every machine
BETWEEN = 5  # placed neighbours that decide where another row lies
BLOCK = 4_096  # rows that are compared with the placed ones at a time
LOOSE = {
    "min_dist": 0.9,
    "spread": 1.5,
}  # features of a clustering are so tight that UMAP's defaults shrink clusters to dots
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layout:
    """Coordinates (n, 2) float32 within [-1, 1], and the name of the method that made them, for display."""

    places: Array
    method: str


def lay_out(unit: Tensor) -> Layout:
    """Unit features (n, D) on a plane: by UMAP where it is installed (the extra `umap`), otherwise by t-SNE.

    The first rows, which should be a fair sample, decide the map; the others are placed on it. The same features give
    the same map.
    """
    if len(unit) <= 3:  # too few neighbours for either
        return Layout(principal_plane(unit), "PCA")
    try:
        from umap import UMAP
    except ImportError:
        return Layout(_to_square(_place_neighbours(unit)), "t-SNE")
    return Layout(_to_square(_learn(UMAP, unit.numpy())), "UMAP")


def _place_neighbours(rows: Tensor) -> Array:
    """Places (n, 2) of unit rows by t-SNE; rows after `TSNE_ROWS` lie between the most similar of the first ones."""
    fitted = rows[:TSNE_ROWS]
    with threadpool_limits(1):  # several threads would sum in another order each time
        tsne = TSNE(
            perplexity=min(30.0, (len(fitted) - 1) / 3),
            init=1e-4 * principal_plane(fitted),
            max_iter=TSNE_STEPS,
            random_state=0,
        )
        places = torch.from_numpy(tsne.fit_transform(fitted.float().numpy()))
    blocks = [places]
    for first in range(TSNE_ROWS, len(rows), BLOCK):
        near = (rows[first : first + BLOCK] @ fitted.T).topk(BETWEEN, dim=1).indices
        blocks.append(places[near].median(dim=1).values)
    return torch.cat(blocks).numpy()


def _learn(method: Any, rows: Array) -> Array:
    """Places (n, 2) by UMAP's class."""
    fitted, rest = rows[:FIT_ROWS], rows[FIT_ROWS:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings that a seed means one thread, and few rows few neighbours
        model = method(metric="cosine", n_neighbors=min(30, len(fitted) - 1), random_state=0, **LOOSE)
        places = model.fit_transform(fitted)
        return np.concatenate([places, model.transform(rest)]) if len(rest) else places


def principal_plane(rows: Tensor) -> Array:
    """Rows (n, D) on the plane of most variance: (n, 2) float32 within [-1, 1].

    The signs of both axes are fixed: the largest absolute entry of each direction is positive.
    """
    centered = rows.double() - rows[:FIT_ROWS].double().mean(dim=0)
    directions = torch.linalg.eigh(centered[:FIT_ROWS].T @ centered[:FIT_ROWS]).eigenvectors[:, -2:].flip(1)
    signs = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
    return _to_square((centered @ (directions * signs)).numpy())


def _to_square(places: Array) -> Array:
    """Moved and scaled, both axes alike, so that all places lie within [-1, 1]."""
    low, high = places.min(axis=0), places.max(axis=0)
    scale = max(float((high - low).max()), 1e-12) / 2
    return ((places - (low + high) / 2) / scale).astype(np.float32)


def arrange(places: Array) -> Array:
    """A grid cell (column, row) of its own for each of K places (K, 2), with neighbours near each other.

    The grid is wider than high, as screens are, and leaves few cells empty. Places are first spread evenly, then
    assigned so that the sum of squared distances is smallest.
    """
    count = len(places)
    root = math.sqrt(count)
    columns = min(range(math.ceil(1.25 * root), math.ceil(2 * root) + 1), key=lambda columns: -count % columns)
    rows = math.ceil(count / columns)
    even = places.argsort(axis=0, kind="stable").argsort(axis=0) / max(1, count - 1)
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    targets = cells / np.maximum([columns - 1, rows - 1], 1)
    cost = ((even[:, None] - targets[None]) ** 2).sum(axis=-1)
    return cells[linear_sum_assignment(cost)[1]]
