"""Whether a run is healthy: its metrics, and the one place that judges them, for a run as for a search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pipeline.clustering.scores import clustering_scores
from pipeline.collectives import all_stack, all_sum
from pipeline.errors import Diverged

# Least values of healthy features: untrained ones have more spread, and one cluster with all images has entropy 0.
COLLAPSED = {"feature_spread": 0.01, "size_entropy": 0.1}
EMPTY_SCORES = {"acc": 0.5, "nmi": 0.05}  # more ACC than this with less NMI: most images are of one class


def size_metrics(sizes: Tensor) -> dict[str, float]:
    """Smallest and largest of the clusters' sizes (K,), empty ones, and the sizes' entropy over ln K (1: all equal)."""
    sizes = sizes.double()
    part = sizes / sizes.sum()
    entropy = -torch.special.xlogy(part, part).sum() / math.log(len(sizes))
    return {
        "cluster_smallest": float(sizes.min()),
        "cluster_largest": float(sizes.max()),
        "clusters_empty": float((sizes == 0).sum()),
        "size_entropy": float(entropy),
    }


def label_churn(before: Tensor, labels: Tensor) -> float:
    """Share of images (N,) that left their cluster, under the best matching of old and new clusters."""
    return 1 - clustering_scores(before.cpu(), labels.cpu())["acc"]


def feature_spread(features: Tensor) -> float:
    """Mean standard deviation of the columns of the workers' features times sqrt(D): 1 on an even sphere, 0 when all
    collapsed."""
    ones = torch.ones_like(features[:, :1])
    sums = all_sum(torch.cat([features, features**2, ones], dim=1).sum(dim=0, dtype=torch.float64))
    size = features.shape[1]
    mean, square = sums[:size] / sums[-1], sums[size:-1] / sums[-1]
    return float((square - mean**2).clamp(min=0).sqrt().mean() * size**0.5)


def rank_spread(x: Tensor) -> float:
    """Largest difference of any element of `x` between workers: 0 for what must be equal everywhere."""
    stacked = all_stack(x)
    return float((stacked.amax(dim=0) - stacked.amin(dim=0)).max())


def check_finite(losses: Mapping[str, Tensor], parameters: Iterable[nn.Parameter], where: str) -> None:
    """Raise Diverged, on all workers alike, when a loss or a weight is not finite.

    Called before anything is saved, because no restart could recover from such a checkpoint. Waits for the device.
    """
    sums = all_sum(torch.stack(list(losses.values())))
    norm = nn.utils.get_total_norm([parameter.detach() for parameter in parameters])
    if not bool(torch.isfinite(sums).all() and torch.isfinite(norm)):
        found = dict(zip(losses, sums.tolist(), strict=True))
        raise Diverged(
            f"losses or weights are not finite {where} (sums of losses: {found}); lower optim.lr, or use float32"
        )


def collapse(metrics: Mapping[str, float]) -> str | None:
    """How an epoch's metrics show that the features have collapsed; None when they have not.

    Meant for epochs after the warm-up: features that have just begun to move may look like that.
    """
    low = {key: metrics[key] for key, least in COLLAPSED.items() if metrics.get(key, least) < least}
    if not low:
        return None
    return f"collapsed: {', '.join(f'{key} is {value:.4f} (below {COLLAPSED[key]})' for key, value in low.items())}"


def alarms(metrics: Mapping[str, float], num_clusters: int) -> dict[str, str]:
    """What a person should know of an epoch's metrics: kind of alarm -> sentence; empty for a healthy run."""
    found: dict[str, str] = {}
    if reason := collapse(metrics):
        found["collapse"] = reason
    if empty := int(metrics.get("clusters_empty", 0)):
        found["empty clusters"] = f"{empty} of {num_clusters} clusters are empty"
    if metrics.get("acc", 0) > EMPTY_SCORES["acc"] and metrics.get("nmi", 1) < EMPTY_SCORES["nmi"]:
        scores = f"acc is {metrics['acc']:.3f} while nmi is {metrics['nmi']:.3f}"
        found["empty scores"] = f"{scores}: most images are of one class, and acc says little"
    return found
