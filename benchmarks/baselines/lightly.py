"""An epoch of the same method from `lightly`'s modules, as its examples of BYOL and SMoG put them together.

Heads, groups, memory bank, cosine loss, momentum update and transforms are lightly's. There is no prototype loss. All
else is there, in both directions: instance and group loss, resets of the groups by scikit-learn's KMeans, features of
all images.
"""

from __future__ import annotations

import copy
from itertools import count

import numpy as np
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, SMoGPrototypes
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.simclr_transform import SimCLRViewTransform
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.transforms import make_loaders
from benchmarks.loop import LR, MEAN, STD, Recipe
from benchmarks.step import FEATURES
from pipeline.method.digpro import DigProSettings
from pipeline.method.encoder import build_encoder
from pipeline.method.schedules import scaled_lr


class Lightly:
    """One training run on the CPU, an epoch at a time.

    Parameters
    ----------
    images : ndarray (N, H, W, 3) uint8
    recipe : Recipe
    workers : int
        Processes that make the views; with 0 this process makes them.
    """

    def __init__(self, images: NDArray[np.uint8], recipe: Recipe, workers: int) -> None:
        torch.manual_seed(0)
        self.recipe, self.settings, self.iterations = recipe, DigProSettings(recipe.clusters), count(1)
        view = simclr_view(recipe.size)
        self.loader, self.whole = make_loaders(images, view, recipe, workers)
        encoder, size = build_encoder(recipe.encoder, small_stem=recipe.small_stem)
        self.online = nn.Sequential(encoder, BYOLProjectionHead(size, recipe.hidden, FEATURES))
        self.target = copy.deepcopy(self.online)
        deactivate_requires_grad(self.target)
        self.predictor = BYOLPredictionHead(FEATURES, recipe.hidden, FEATURES)
        self.groups = SMoGPrototypes(torch.rand(recipe.clusters, FEATURES), self.settings.group_momentum)
        self.bank = MemoryBankModule((self.settings.bank_size, FEATURES), feature_dim_first=False)
        self.instance_loss = NegativeCosineSimilarity()
        trained = [*self.online.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.SGD(trained, scaled_lr(LR, recipe.batch), momentum=0.9, weight_decay=5e-4)

    def train_epoch(self, labels: Tensor) -> float:
        """The M-step, which does not use the pseudo-labels; returns the mean loss."""
        self.online.train()
        self.target.train()
        return float(torch.stack([self._step(first, second) for first, second, _ in self.loader]).mean())

    def _step(self, first: Tensor, second: Tensor) -> Tensor:
        iteration = next(self.iterations)
        if iteration > 1 and iteration % self.recipe.clusters == 0:
            self._reset_groups()
        update_momentum(self.online, self.target, m=0.996)
        loss = (self._loss(first, second) + self._loss(second, first)) / 2
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _loss(self, view: Tensor, other: Tensor) -> Tensor:
        """Instance and group loss of one view against the target's features of the other; moves the groups."""
        online = self.online(view)
        with torch.no_grad():
            target = self.target(other)
        assignment = self.groups.assign_groups(target)
        moved = self.groups.get_updated_group_features(online)
        prediction = self.predictor(online)
        logits = self.groups(prediction, moved, self.settings.group_temperature)
        self.groups.set_group_features(moved.detach())
        self.bank(F.normalize(online.detach(), dim=1), update=True)
        weights = self.settings.weights
        instance = 2 * weights["instance"] * self.instance_loss(prediction, target)
        return instance + weights["group"] * F.cross_entropy(logits, assignment)

    def _reset_groups(self) -> None:
        centers = KMeans(self.recipe.clusters).fit(self.bank.bank.numpy()).cluster_centers_
        self.groups.set_group_features(F.normalize(torch.from_numpy(centers), dim=1))

    def encode(self) -> Tensor:
        """Target features (N, D) of all images, un-augmented."""
        self.target.eval()
        with torch.no_grad():
            return torch.cat([F.normalize(self.target(images), dim=1) for images, _ in self.whole])


def simclr_view(size: int) -> SimCLRViewTransform:
    """The views of `simclr_policy` by lightly's transform."""
    return SimCLRViewTransform(size, cj_strength=0.5, gaussian_blur=0.0, normalize={"mean": MEAN, "std": STD})
