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


def learning_rates(
    lr: float,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int,
    final_lr: float = 0.0,
    reference_long_cosine: bool = False,
) -> NDArray[np.float64]:
    """Linear warm-up to `lr`, then a half cosine down to `final_lr` at the last step.

    `reference_long_cosine` stretches the cosine over `epochs` from the end of the warm-up on, as the reference code
    does, so that the run ends before the rate reaches `final_lr`.
    """
    epoch = np.arange(1, epochs * steps_per_epoch + 1) / steps_per_epoch
    span = epochs if reference_long_cosine else max(epochs - warmup_epochs, 1)
    falling = final_lr + (lr - final_lr) * (1 + np.cos(np.pi * (epoch - warmup_epochs) / span)) / 2
    return np.where(epoch < warmup_epochs, lr * epoch / max(warmup_epochs, 1), falling)


def target_momenta(momentum: float, *, steps: int, increase: bool = False) -> NDArray[np.float64]:
    """A constant momentum, or with `increase` a half cosine from it to 1 (BYOL)."""
    step = np.arange(1, steps + 1)
    rising = 1 - (1 - momentum) * (1 + np.cos(np.pi * step / steps)) / 2
    return rising if increase else np.full(steps, momentum)


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
        Peak learning rate, already scaled to the batch (see :func:`scaled_lr`).
    predictor_lr_factor : float
        The predictor learns this many times faster.
    fixed_predictor_lr : bool
        The predictor's rate is `lr` throughout instead.
    """
    rates = learning_rates(
        lr,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=warmup_epochs,
        final_lr=final_lr,
        reference_long_cosine=reference_long_cosine,
    )
    predictor = np.full_like(rates, lr) if fixed_predictor_lr else predictor_lr_factor * rates
    momenta = target_momenta(target_momentum, steps=len(rates), increase=increase_momentum)
    return Schedules(rates, predictor, momenta)
