"""How well features tell known classes apart: weighted nearest neighbours, and a linear classifier in closed form.

Rows are spread over many workers; the results cover all rows and are the same on every worker.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.collectives import all_stack, all_sum, gather_rows, world_size

NEIGHBOURS, TEMPERATURE = 20, 0.07  # those of DINO (arXiv 2104.14294)
RIDGE = 1.0  # penalty on the squared weights of features of unit variance, as scikit-learn's
LEAST_VARIANCE = 1e-8  # of a feature that is not constant
BLOCK_VALUES = 1 << 24  # similarities, or values in float64, that are held at a time
BLOCK_QUERIES = 1 << 13  # queries of all workers that are exchanged at a time
TILE_QUERIES = 1 << 10  # queries whose similarities are computed together


def knn_accuracy(features: Tensor, classes: Tensor, held_out: Tensor) -> float:
    """Share of held-out rows whose class wins the vote of their nearest rows that are not held out.

    Each of the 20 nearest votes with exp(cosine / 0.07); where there are fewer rows, all vote.

    Parameters
    ----------
    features : Tensor (n_local, D)
        Of any length.
    classes : Tensor (n_local,) int64
        Rows with -1 (unknown) take no part.
    held_out : Tensor (n_local,) bool

    Raises
    ------
    ValueError
        When no row with a class is held out on any worker, or all are.
    """
    features = F.normalize(features, dim=1)
    queries, wanted, known, answers = _split(features, classes, held_out)
    block, width = max(1, BLOCK_QUERIES // world_size()), int(_largest(classes)) + 1
    correct = torch.zeros((), dtype=torch.int64, device=features.device)
    longest = int(all_stack(torch.tensor(len(queries), device=features.device)).max())
    for start in range(0, longest, block):  # the same number of rounds on every worker
        rows = slice(start, start + block)
        similarity, votes = _nearest(gather_rows(queries[rows]), known, answers)
        ballot = similarity.new_zeros((len(similarity), width))
        ballot.scatter_add_(1, votes, (similarity / TEMPERATURE).exp())
        correct += (ballot.argmax(dim=1) == gather_rows(wanted[rows])).sum()
    return int(correct) / _count(queries)


def _nearest(queries: Tensor, known: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity and class (m, 20) of the rows of all workers nearest to queries (m, D), the same on every worker.

    Places that no row fills have the similarity -inf, whose vote is 0.
    """
    found = [_nearest_own(some, known) for some in queries.split(TILE_QUERIES)]
    similarity, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    missing = (0, NEIGHBOURS - similarity.shape[1])
    similarity, votes = F.pad(similarity, missing, value=-torch.inf), F.pad(answers[rows], missing)
    all_similarities, all_votes = (all_stack(part).transpose(0, 1).flatten(1) for part in (similarity, votes))
    best, places = all_similarities.topk(NEIGHBOURS, dim=1)
    return best, all_votes.gather(1, places)


def _nearest_own(queries: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity and number (m, 20 or fewer) of this worker's rows nearest to queries (m, D), tile by tile."""
    best, numbers = queries.new_empty((len(queries), 0)), torch.empty_like(queries[:, :0], dtype=torch.int64)
    tile = BLOCK_VALUES // TILE_QUERIES
    for start in range(0, len(known), tile):
        rows = known[start : start + tile]
        similarity, places = (queries @ rows.T).topk(min(NEIGHBOURS, len(rows)), dim=1)
        best, numbers = torch.cat([best, similarity], dim=1), torch.cat([numbers, places + start], dim=1)
        best, places = best.topk(min(NEIGHBOURS, best.shape[1]), dim=1)
        numbers = numbers.gather(1, places)
    return best, numbers


def linear_accuracy(features: Tensor, classes: Tensor, held_out: Tensor) -> float:
    """Share of held-out rows that a linear classifier, fitted to the other rows, classifies correctly.

    The classifier is a ridge regression, with intercept, of the classes as vectors of 0 and 1. It is exact: its sums
    are D x D and D x classes, whatever the number of rows.

    Parameters
    ----------
    features : Tensor (n_local, D)
    classes : Tensor (n_local,) int64
        Rows with -1 (unknown) take no part.
    held_out : Tensor (n_local,) bool

    Raises
    ------
    ValueError
        When no row with a class is held out on any worker, or all are.
    """
    queries, wanted, known, answers = _split(features, classes, held_out)
    weights = ridge(known, answers, int(_largest(classes)) + 1)
    predicted = (_with_one(queries.double()) @ weights).argmax(dim=1)
    return int(all_sum((predicted == wanted).sum())) / _count(queries)


def ridge(features: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Weights (D + 1, classes) float64 of a ridge regression of one-hot classes; the last row is the intercept.

    The penalty is that of features scaled to unit variance, because classes lie close together early in training.
    """
    size = features.shape[1] + 1
    sums = torch.zeros(size, size + num_classes, dtype=torch.float64, device=features.device)
    block = max(1, BLOCK_VALUES // (size + num_classes))
    for rows, part in zip(features.split(block), classes.split(block), strict=True):
        inputs = _with_one(rows.double())
        sums += inputs.T @ torch.cat([inputs, F.one_hot(part, num_classes).double()], dim=1)
    sums = all_sum(sums)
    variance = sums.diagonal() / sums[-1, size - 1] - (sums[-1, :size] / sums[-1, size - 1]) ** 2
    penalty = RIDGE * variance.clamp(min=LEAST_VARIANCE)
    penalty[-1] = 0  # the intercept has no penalty
    return torch.linalg.solve(sums[:, :size] + penalty.diag(), sums[:, size:])


def _split(features: Tensor, classes: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and classes of the held-out rows and of the others, among those with a class."""
    has_class = classes >= 0
    asked, known = held_out & has_class, ~held_out & has_class
    counts = all_sum(torch.stack([asked.sum(), known.sum()])).tolist()
    if 0 in counts:
        raise ValueError(f"{counts[0]} rows with a class are held out and {counts[1]} are not; give some of both")
    return features[asked], classes[asked], features[known], classes[known]


def _largest(classes: Tensor) -> Tensor:
    """The largest class on any worker."""
    own = classes.max() if len(classes) else classes.new_full((), -1)
    return all_stack(own).max()


def _count(rows: Tensor) -> int:
    """Rows on all workers."""
    return int(all_sum(torch.tensor(len(rows), device=rows.device)))


def _with_one(features: Tensor) -> Tensor:
    """Rows (n, D) with a column of ones at the end."""
    return F.pad(features, (0, 1), value=1.0)
