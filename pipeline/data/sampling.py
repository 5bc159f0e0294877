"""Sampling by pseudo-label, so that small clusters are seen: how often each image is drawn in an epoch.

The weight of an image in a pseudo-cluster of n images is n^-balance, as in long-tailed recognition (Mahajan et al.,
ECCV 2018). The draws are made window by window (`pipeline.data.order.Order.draw`).
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_DRAWS = 20  # per image and epoch, on average: a cluster of one outlier must not fill a tenth of each batch


def sampling_weights(labels: Tensor, sizes: Tensor, balance: float) -> Tensor:
    """How often each of this worker's images is drawn in an epoch, on average.

    Parameters
    ----------
    labels : Tensor (n_local,) int
        Pseudo-labels of this worker's images.
    sizes : Tensor (K,) int64
        Images in each cluster, over all workers. Empty clusters are ignored.
    balance : float
        0 draws each image once; 1 draws each cluster equally often.

    Returns
    -------
    Tensor (n_local,) float64
        On the CPU, each at most MOST_DRAWS; over the N images of all workers they sum to N.
    """
    sizes = sizes.cpu().double()
    return _limited(sizes.clamp(min=1) ** -balance, sizes)[labels.cpu()]


def _limited(relative: Tensor, sizes: Tensor) -> Tensor:
    """Weights (K,) proportional to `relative`, capped at MOST_DRAWS; over all N images they sum to N."""
    limited = torch.zeros(len(sizes), dtype=torch.bool)
    while True:
        left = sizes.sum() - MOST_DRAWS * sizes[limited].sum()
        weights = relative * (left / (sizes * relative)[~limited].sum())
        over = ~limited & (weights > MOST_DRAWS)
        if not over.any():
            return weights.masked_fill(limited, MOST_DRAWS)
        limited |= over
