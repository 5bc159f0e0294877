"""The three losses of DigPro: pure functions of features, in the precision of their input.

`unit(x)` divides a row by its length. Predictions come from the online network (with predictor), targets from the
momentum network of the other view; targets carry no gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.collectives import all_sum

MANY_CLUSTERS = 4096  # from here on clusters absent from a batch are removed; finding them waits for the GPU


def unit(x: Tensor) -> Tensor:
    """Rows of x (..., D) on the unit sphere; a zero row stays zero."""
    return F.normalize(x, dim=-1, eps=1e-12)


def instance_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Minus twice the mean cosine of predictions (B, D) and targets (B, D): -2 at best (BYOL, without its constant)."""
    return -2 * F.cosine_similarity(prediction, target.detach(), dim=-1).mean()


def group_loss(prediction: Tensor, groups: Tensor, assignment: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of each prediction against all groups (synchronous momentum grouping, SMoG).

    Parameters
    ----------
    prediction : Tensor (B, D)
    groups : Tensor (G, D)
        Any length of rows; a gradient flows to them where they carry one.
    assignment : Tensor (B,) int64
        Group of the other view's target feature.
    temperature : float
    """
    logits = unit(prediction) @ unit(groups).T / temperature
    return F.cross_entropy(logits, assignment)


def prototype_sums(online: Tensor, target: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """What the prototypes are made from: each cluster's summed unit rows (K, D + D + 1), over this worker's rows.

    The columns are the online sums, the target sums (without gradient) and the number of rows. Parameters as in
    `prototype_loss`.
    """
    rows = torch.cat([unit(online), unit(target.detach()), torch.ones_like(online[:, :1])], dim=1)
    if labels.dim() == 2:
        return labels.to(rows.dtype).T @ rows
    return sums_by_label(rows, labels, num_clusters)


def sums_by_label(rows: Tensor, labels: Tensor, count: int) -> Tensor:
    """Sum (count, C) of the rows (B, C) with each label (B,) from 0 to `count` - 1; zero where there are none."""
    if count <= MANY_CLUSTERS:
        return _one_hot_sums(rows, labels, count)
    present, place = labels.unique(return_inverse=True)  # B x count numbers would be too many
    return rows.new_zeros(count, rows.shape[1]).index_copy(0, present, _one_hot_sums(rows, place, len(present)))


def _one_hot_sums(rows: Tensor, labels: Tensor, count: int) -> Tensor:
    """As a product of matrices, which a GPU computes in the same order each time; additions by index it does not."""
    return F.one_hot(labels, count).to(rows.dtype).T @ rows


def prototype_contrast(sums: Tensor, temperature: float = 0.5, *, empty_logit: float = float("-inf")) -> Tensor:
    """The prototype loss from the global batch's sums (K, 2D + 1), as `prototype_sums` lays them out."""
    if len(sums) > MANY_CLUSTERS and empty_logit == float("-inf"):
        sums = sums[sums[:, -1] > 0]  # most are absent from a batch, and the logits grow with K squared
    size = sums.shape[1] // 2
    q, k, count = unit(sums[:, :size]), unit(sums[:, size:-1]), sums[:, -1].detach()
    own = (q * k).sum(dim=1)
    logits = torch.diagonal_scatter(q @ q.T, own) / temperature
    present = count > 0
    logits = logits.masked_fill(~present, empty_logit)
    loss = torch.logsumexp(logits, dim=1) - own / temperature
    return torch.where(present, loss, 0).sum() / present.sum()


def prototype_loss(
    online: Tensor,
    target: Tensor,
    labels: Tensor,
    num_clusters: int,
    temperature: float = 0.5,
    *,
    empty_logit: float = float("-inf"),
) -> Tensor:
    """Contrast of the clusters' prototypes over the global batch: each near its momentum twin, far from the others.

    Parameters
    ----------
    online : Tensor (B, D)
        Features of the online network, any length of rows.
    target : Tensor (B, D)
        Features of the target network, any length of rows.
    labels : Tensor (B,) int64 or (B, num_clusters) float
        Pseudo-labels of the rows, hard or soft.
    num_clusters : int
    temperature : float
    empty_logit : float
        Logit of clusters without members in the global batch: -inf leaves them out; the reference code has -10.

    Returns
    -------
    Tensor ()
        Mean over the clusters present, the same number on every worker.
    """
    sums = all_sum(prototype_sums(online, target, labels, num_clusters))
    return prototype_contrast(sums, temperature, empty_logit=empty_logit)
