"""Metrics of a run's health, which `pipeline.alarms` judges, and the check whether its state may be saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from pipeline.clustering.label_free import contingency_agreement
from pipeline.clustering.scores import matching_accuracy
from pipeline.collectives import all_stack, all_sum

ROWS = 8192  # of the features, that are summed at a time


def size_metrics(sizes: Tensor) -> dict[str, float]:
    """From cluster sizes (K,): smallest, largest, number of empty ones, and entropy over ln K (1: all equal)."""
    sizes = sizes.double()
    entropy = torch.special.entr(sizes / sizes.sum()).sum() / math.log(len(sizes))
    return {
        "cluster_smallest": float(sizes.min()),
        "cluster_largest": float(sizes.max()),
        "clusters_empty": float((sizes == 0).sum()),
        "size_entropy": float(entropy),
    }


def change_metrics(moves: csr_array) -> dict[str, float]:
    """How far two E-steps differ, from the counts (K_before, K) of images that moved from each old to each new cluster.

    `label_churn` is the share of images that left their cluster, under `matching_accuracy` of old and new clusters;
    `estep_agreement` is `contingency_agreement`.
    """
    return {"label_churn": 1 - matching_accuracy(moves), "estep_agreement": contingency_agreement(moves)}


def feature_spread(features: Tensor) -> float:
    """Mean standard deviation of the workers' feature columns times sqrt(D): 1 on an even sphere, 0 if collapsed."""
    size, count = features.shape[1], features.new_full((1,), len(features), dtype=torch.float64)
    own = count.new_zeros(2, size)
    for rows in features.split(ROWS):  # a sum in another type would copy all of them
        own += torch.stack([rows.double().sum(dim=0), rows.double().square().sum(dim=0)])
    sums = all_sum(torch.cat([*own, count]))
    mean, square = sums[:size] / sums[-1], sums[size:-1] / sums[-1]
    return float((square - mean**2).clamp(min=0).sqrt().mean() * size**0.5)


def rank_spread(x: Tensor) -> float:
    """Largest difference of any element of `x` between workers: 0 if `x` is equal on all of them."""
    stacked = all_stack(x)
    return float((stacked.amax(dim=0) - stacked.amin(dim=0)).max())


def non_finite(losses: Mapping[str, Tensor], state: Iterable[Tensor], where: str) -> str | None:
    """A message, on all workers alike, when a loss or a state tensor is not finite on any of them; otherwise None.

    Checked before anything is saved, because no restart could recover from such a checkpoint. Waits for the device.
    """
    norm = nn.utils.get_total_norm([tensor.detach() for tensor in state if tensor.is_floating_point()])
    sums = all_sum(torch.stack([*losses.values(), norm.to(torch.float64)]))
    if bool(torch.isfinite(sums).all()):
        return None
    found = dict(zip(losses, sums.tolist(), strict=False))
    remedy = "lower optim.lr, or set optim.precision=float32"
    return f"losses or weights are not finite {where} (sums of losses: {found}); {remedy}"
