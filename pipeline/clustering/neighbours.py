"""The nearest other rows of each row, by the cosines of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

QUERIES = 512  # rows whose similarities with all rows are in memory at a time


def nearest_rows(unit: Tensor, start: int, stop: int, count: int) -> tuple[Tensor, Tensor]:
    """The nearest other rows of rows `start` to `stop - 1`, by all similarities.

    Parameters
    ----------
    unit : Tensor (n, D)
        Rows of length 1.
    count : int
        Less than n.

    Returns
    -------
    tuple of Tensor
        Numbers of the rows (stop - start, count), nearest first, and their cosine similarities.
    """
    found = []
    for first in range(start, stop, QUERIES):
        own = torch.arange(first, min(first + QUERIES, stop))
        similarity = unit[own] @ unit.T
        similarity[torch.arange(len(own)), own] = -torch.inf
        found.append(similarity.topk(count, dim=1))
    return torch.cat([top.indices for top in found]), torch.cat([top.values for top in found])
