"""An epoch as the reference code runs it, written afresh from docs/algorithm.md.

Views are made image by image on a DataLoader's workers; each view and each network has a forward pass of its own, with
torch's BatchNorm; features of all images are collected in one process. The losses, the resets of the groups and the
optimizer are ours; the reference's are not faster. Needs only torch and torchvision.
"""

from __future__ import annotations

from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.baselines.transforms import make_loaders, torchvision_view
from benchmarks.loop import NOISE, Recipe, simclr_policy
from benchmarks.step import FEATURES, SeparateViews, take_step


class Reference:
    """One training run, an epoch at a time.

    Parameters
    ----------
    images : ndarray (N, H, W, 3) uint8
    recipe : Recipe
    workers : int
        Processes that make the views; with 0 this process makes them.
    device : torch.device
    autocast : torch.dtype or None
        Precision of the networks; None is float32, as in the reference.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        recipe: Recipe,
        workers: int,
        device: torch.device | str = "cpu",
        autocast: torch.dtype | None = None,
    ) -> None:
        self.recipe, self.device, self.iterations = recipe, device, count(1)
        view = torchvision_view(simclr_policy(recipe.size), from_pil=True)
        self.loader, self.whole = make_loaders(images, view, recipe, workers)
        self.model = recipe.build_model(SeparateViews, autocast).to(device)
        self.optimizer = recipe.build_optimizer(self.model)

    def train_epoch(self, labels: Tensor) -> float:
        """The M-step with pseudo-labels (N,) on the CPU; returns the mean loss."""
        self.model.train()
        return float(torch.stack([self._step(batch, labels) for batch in self.loader]).mean())

    def _step(self, batch: list[Tensor], labels: Tensor) -> Tensor:
        *views, y = (part.to(self.device, non_blocking=True) for part in (*batch[:2], labels[batch[2]]))
        noise = NOISE * torch.randn(2, len(y), FEATURES, device=self.device)
        iteration = next(self.iterations)
        due = iteration > 1 and iteration % self.recipe.clusters == 0
        centers = self.model.bank_centers(seed=iteration) if due else None
        return take_step(self.model, self.optimizer, views, y, noise, group_centers=centers)

    def encode(self) -> Tensor:
        """Target features (N, D) of all images, un-augmented, on the CPU."""
        return torch.cat([self.model.encode(images.to(self.device)).cpu() for images, _ in self.whole])
