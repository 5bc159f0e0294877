"""Monitors: at their own cadence, how well an E-step's features tell the classes apart; training never sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.clustering.monitors import knn_accuracy, linear_accuracy
from pipeline.collectives import row_range
from pipeline.config.models import MonitorConfig, RunConfig
from pipeline.data.read import read_labels
from pipeline.keyed_random import Stream, uniform
from pipeline.plan import has_estep

MEASURES = {"knn_acc": knn_accuracy, "linear_acc": linear_accuracy}


@dataclass(frozen=True)
class Monitors:
    """Classes (own rows,) of this worker's part of the images, and which of them are held out."""

    classes: Tensor
    held_out: Tensor


def read_monitors(config: RunConfig, device: torch.device) -> Monitors | None:
    """This worker's part; None when monitors are switched off, or no image has a class."""
    if not any(cadences(config.monitor).values()):
        return None
    labels = read_labels(config.data.path)
    return None if labels is None else make_monitors(torch.from_numpy(labels).to(device), config)


def make_monitors(labels: Tensor, config: RunConfig) -> Monitors:
    """This worker's part of the classes (N,) of all images.

    The share that is held out is of those with a class, at least one of them; the seed and the image decide.
    """
    start, stop, _ = row_range(len(labels))
    known = (labels >= 0).nonzero()[:, 0]
    count = max(1, round(config.monitor.held_out * len(known)))
    order = uniform(config.seed, 0, known, Stream.HELD_OUT, 1)[:, 0].argsort(stable=True)
    held_out = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    held_out[known[order[:count]]] = True
    return Monitors(labels[start:stop], held_out[start:stop])


def cadences(settings: MonitorConfig) -> dict[str, int]:
    """Epochs between two measures of each kind; 0: none."""
    return {"knn_acc": settings.knn_every, "linear_acc": settings.probe_every}


def monitor_metrics(monitors: Monitors, features: Tensor, config: RunConfig, epoch: int) -> dict[str, float]:
    """What is due after an E-step, from the workers' features (own rows, D); the same on every worker.

    The last epoch has all that is switched on.
    """
    last = epoch == config.optim.epochs
    due = [name for name, every in cadences(config.monitor).items() if every and (last or epoch % every == 0)]
    return {name: MEASURES[name](features, monitors.classes, monitors.held_out) for name in due}


def monitor_warnings(config: RunConfig, *, has_classes: bool) -> list[str]:
    """What a person should know of the monitors that are switched on."""
    names = {"knn_acc": "monitor.knn_every", "linear_acc": "monitor.probe_every"}
    on = {names[name]: every for name, every in cadences(config.monitor).items() if every}
    if on and not has_classes:
        return [f"{' and '.join(on)} without effect: the images have no classes"]
    step, epochs = config.estep.every * config.estep.warmup_every, config.optim.epochs
    missed = {key: [e for e in range(every, epochs, every) if not has_estep(config, e)] for key, every in on.items()}
    return [
        f"{key}={on[key]} meets epochs without E-step, {left_out[0]} for example, and leaves them out; give a multiple "
        f"of {step}"
        for key, left_out in missed.items()
        if left_out
    ]
