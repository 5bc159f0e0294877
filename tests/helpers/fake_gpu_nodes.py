"""Workers whose nodes have GPUs by name only: Ray places them by these, and they compute on the CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.training import fit, run, worker


def train_on_cpu(settings: dict[str, Any]) -> dict[str, Any]:
    """Train as a worker on a GPU would, on the CPU."""
    run.get_device = lambda: torch.device("cpu")
    return worker.train_worker(settings)


def patch_devices(patch: pytest.MonkeyPatch) -> None:
    """Let runs that this process starts train on the CPU whatever their workers reserve."""
    patch.setattr(fit, "train_worker", train_on_cpu)
    patch.setattr(fit, "TorchTrainer", partial(TorchTrainer, torch_config=TorchConfig(backend="gloo")))
