"""Monitors: how well an E-step's features tell the classes apart, at their own cadence; training never sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.clustering.monitors import knn_accuracy, linear_accuracy
from pipeline.collectives import RowRange, all_sum, gather_rows
from pipeline.config.models import MonitorConfig, RunConfig
from pipeline.keyed_random import Stream, uniform
from pipeline.plan import has_estep

MEASURES = {"knn_acc": knn_accuracy, "linear_acc": linear_accuracy}
HELD_OUT = 0.2  # of the images with a class
BINS = 1 << 16  # of random numbers in [0, 1): with ten million images each holds about 150


@dataclass(frozen=True)
class Monitors:
    """Classes (own rows,) of this worker's images, and which of them are held out."""

    classes: Tensor
    held_out: Tensor


def make_monitors(
    labels: np.ndarray[Any, Any] | None, own: RowRange, config: RunConfig, device: torch.device
) -> Monitors | None:
    """This worker's part, from the classes (own rows,) of its images.

    None when monitors are switched off, or when no image of any worker has a class; then all workers give None. A share
    of the images with a class is held out, at least one image; the seed and the image decide which.
    """
    if labels is None or not any(cadences(config.monitor).values()):
        return None
    classes = torch.from_numpy(labels).to(device)
    known = (classes >= 0).nonzero()[:, 0]
    total = int(all_sum(torch.tensor(len(known), device=device)))
    index = own.start + known
    draws = uniform(config.seed, 0, index, Stream.HELD_OUT, 1)[:, 0]
    held_out = torch.zeros(own.size, dtype=torch.bool, device=device)
    held_out[known] = are_smallest(draws, index, max(1, round(HELD_OUT * total)))
    return Monitors(classes, held_out)


def are_smallest(draws: Tensor, index: Tensor, count: int) -> Tensor:
    """Which (n_local,) of this worker's draws (n_local,) in [0, 1) are among the `count` smallest of all workers.

    Ties go to the lower index (n_local,); indices rise over the workers. Draws are counted in bins, and only the draws
    in the bin where the count is reached are gathered.
    """
    bins = (draws * BINS).long()
    until = all_sum(torch.bincount(bins, minlength=BINS)).cumsum(0)
    whole = int((until <= count).sum())  # bins that are taken whole
    missing = count - (int(until[whole - 1]) if whole else 0)
    last = bins == whole
    order = gather_rows(draws[last]).argsort(stable=True)
    return (bins < whole) | torch.isin(index, gather_rows(index[last])[order[:missing]])


def cadences(settings: MonitorConfig) -> dict[str, int]:
    """Epochs between two measures of each kind; 0: none."""
    return {"knn_acc": settings.knn_every, "linear_acc": settings.probe_every}


def monitor_metrics(monitors: Monitors, features: Tensor, config: RunConfig, epoch: int) -> dict[str, float]:
    """The metrics due after an E-step, from the workers' features (own rows, D); the same on every worker.

    After the last epoch all that are switched on are due.
    """
    last = epoch == config.optim.epochs
    due = [name for name, every in cadences(config.monitor).items() if every and (last or epoch % every == 0)]
    return {name: MEASURES[name](features, monitors.classes, monitors.held_out) for name in due}


def monitor_warnings(config: RunConfig, *, has_classes: bool) -> list[str]:
    """Warnings about the monitors that are switched on."""
    names = {"knn_acc": "monitor.knn_every", "linear_acc": "monitor.probe_every"}
    on = {names[name]: every for name, every in cadences(config.monitor).items() if every}
    if on and not has_classes:
        return [f"the images have no classes, so {' and '.join(on)} cannot be measured"]
    step, epochs = config.estep.every * config.estep.warmup_every, config.optim.epochs
    missed = {key: [e for e in range(every, epochs, every) if not has_estep(config, e)] for key, every in on.items()}
    return [
        f"{key}={on[key]} skips epochs without an E-step, such as epoch {left_out[0]}; give a multiple of {step}"
        for key, left_out in missed.items()
        if left_out
    ]
