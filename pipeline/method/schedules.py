"""Learning rates and target momentum as arrays over the steps, so that resuming only needs an index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Schedules:
    """Values of every step of a run; element i belongs to the i-th step, counted from 0."""

    lr: NDArray[np.float64]
    predictor_lr: NDArray[np.float64]
    target_momentum: NDArray[np.float64]


def scaled_lr(lr: float, batch_size: int) -> float:
    """The learning rate for a global batch, in proportion to one given for 256 images."""
    return lr * batch_size / 256


def build_schedules(
    lr: float,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int,
    final_lr: float = 0.0,
    predictor_lr_factor: float = 10.0,
    fixed_predictor_lr: bool = False,
    target_momentum: float = 0.996,
    increase_momentum: bool = False,
    reference_long_cosine: bool = False,
) -> Schedules:
    """All schedules of a run of epochs * steps_per_epoch steps.

    Parameters
    ----------
    lr : float
        Peak learning rate, already scaled to the batch (see :func:`scaled_lr`). The rate rises to it linearly during
        the warm-up, and falls in a half cosine to `final_lr` at the last step.
    predictor_lr_factor : float
        The predictor learns this many times faster.
    fixed_predictor_lr : bool
        The predictor's rate is `lr` throughout instead.
    increase_momentum : bool
        The momentum rises in a half cosine from `target_momentum` to 1 (BYOL), instead of staying constant.
    reference_long_cosine : bool
        Stretch the rate's cosine over `epochs` from the end of the warm-up on, as the reference code does. The run then
        ends before the rate reaches `final_lr`.
    """
    steps = epochs * steps_per_epoch
    step = np.arange(1, steps + 1)
    epoch = step / steps_per_epoch
    cosine_epochs = epochs if reference_long_cosine else max(epochs - warmup_epochs, 1)
    falling = final_lr + (lr - final_lr) * (1 + np.cos(np.pi * (epoch - warmup_epochs) / cosine_epochs)) / 2
    rates = np.where(epoch < warmup_epochs, lr * epoch / max(warmup_epochs, 1), falling)
    predictor = np.full_like(rates, lr) if fixed_predictor_lr else predictor_lr_factor * rates
    rising = 1 - (1 - target_momentum) * (1 + np.cos(np.pi * step / steps)) / 2
    return Schedules(rates, predictor, rising if increase_momentum else np.full(steps, target_momentum))
