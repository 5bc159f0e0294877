"""DigPro's two steps in one process: what `pipeline.training.worker` does, from the same parts, without Ray.

Needs only torch and torchvision, so that whole epochs can be measured where nothing else is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.step import FEATURES, build_model, take_step
from pipeline.clustering.kmeans import spherical_kmeans
from pipeline.collectives import RowRange
from pipeline.data.loader import Inputs, ResidentImages
from pipeline.data.order import Order
from pipeline.data.preprocess import Preprocess
from pipeline.data.views import TwoViews
from pipeline.keyed_random import Stream, normal
from pipeline.method.digpro import DigPro
from pipeline.method.optimizer import build_optimizer, set_learning_rates
from pipeline.method.schedules import build_schedules, scaled_lr

MEAN, STD = [0.5] * 3, [0.25] * 3  # of synthetic images
LR, NOISE, BLOCK = 0.05, 0.001, 512


@dataclass(frozen=True)
class Recipe:
    """What is trained; the defaults are the reference's for small images, except the warm-up.

    Attributes
    ----------
    encoder : {"tiny", "resnet18", "resnet34", "resnet50"}
    size : int
        Side of the views in pixels; up to 64 the encoder has the small stem.
    batch, clusters, hidden : int
        Images a step, K, and the width of the two heads.
    epochs, warmup_epochs : int
        Of the schedules. The warm-up has neither prototype loss nor noise, so speed is measured after it.
    restarts : int
        Starts of the E-step's k-means.
    """

    encoder: str = "resnet18"
    size: int = 32
    batch: int = 256
    clusters: int = 10
    hidden: int = 4096
    epochs: int = 1000
    warmup_epochs: int = 0
    restarts: int = 10

    @property
    def small_stem(self) -> bool:
        """Whether the encoder keeps the resolution of small images."""
        return self.size <= 64

    def build_model(self, kind: type[DigPro] = DigPro, autocast: torch.dtype | None = None) -> DigPro:
        """A new model with the weights of seed 0."""
        return build_model(
            kind, self.encoder, autocast, clusters=self.clusters, hidden=self.hidden, small_stem=self.small_stem
        )

    def build_optimizer(self, model: DigPro) -> torch.optim.SGD:
        """SGD as in the reference."""
        return build_optimizer(model, lr=scaled_lr(LR, self.batch), momentum=0.9, weight_decay=5e-4)


def simclr_policy(size: int) -> Any:
    """Views of the reference: the fields of `ViewsConfig` that make views, with its defaults, but without pydantic."""
    return SimpleNamespace(
        size=size,
        crop_scale=(0.08, 1.0),
        crop_ratio=(3 / 4, 4 / 3),
        rotation=0.0,
        horizontal_flip=0.5,
        vertical_flip=0.0,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        grayscale=0.2,
        blur=0.0,
        blur_sigma=(0.1, 2.0),
    )


class Loop:
    """One training run on one device, an epoch and an E-step at a time.

    Parameters
    ----------
    images : Tensor (N, H, W, 3) uint8
        On the device that trains.
    recipe : Recipe
    mean, std : sequences of 3 floats
        Of the images' channels.
    autocast : torch.dtype or None
        Precision of the networks; None is float32.
    change : callable, optional
        Changes the new model in place: its memory format, its compilation.
    """

    def __init__(
        self,
        images: Tensor,
        recipe: Recipe,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        *,
        autocast: torch.dtype | None = None,
        change: Callable[[DigPro], object] | None = None,
    ) -> None:
        self.recipe, self.epoch = recipe, 0
        count = len(images)
        source = ResidentImages(images, RowRange(0, count, count), BLOCK)
        self.inputs = Inputs(Order(count, recipe.batch, 0, count, (count,)), source, images.device)
        self.views = TwoViews(simclr_policy(recipe.size), mean, std, seed=0)
        self.preprocess = Preprocess(recipe.size, mean, std).to(images.device)
        self.model = recipe.build_model(autocast=autocast).to(images.device)
        if change is not None:
            change(self.model)
        self.optimizer = recipe.build_optimizer(self.model)
        self.steps = len(images) // recipe.batch
        self.schedules = build_schedules(
            scaled_lr(LR, recipe.batch),
            epochs=recipe.epochs,
            steps_per_epoch=self.steps,
            warmup_epochs=recipe.warmup_epochs,
        )
        self.labels = torch.arange(len(images), device=images.device) % recipe.clusters

    def train_epoch(self) -> float:
        """The M-step: one pass over the images in whole batches; returns the mean loss."""
        self.model.train()
        warmup, losses = self.epoch < self.recipe.warmup_epochs, []
        for step, batch in enumerate(self.inputs.epoch(self.epoch), self.epoch * self.steps):
            rates = self.schedules
            set_learning_rates(self.optimizer, float(rates.lr[step]), float(rates.predictor_lr[step]))
            loss = take_step(
                self.model,
                self.optimizer,
                self.views(batch.inputs, batch.keys, self.epoch),
                self.labels[batch.index],
                None if warmup else self.latent_noise(batch.keys),
                warmup=warmup,
                target_momentum=float(rates.target_momentum[step]),
                group_centers=self.new_groups(step + 1),
            )
            losses.append(loss)
        self.epoch += 1
        return float(torch.stack(losses).mean())

    def latent_noise(self, keys: Tensor) -> Tensor:
        """Noise (2, B, D) on the features of both views, each image's own."""
        streams = (Stream.NOISE_A, Stream.NOISE_B)
        return NOISE * torch.stack([normal(0, self.epoch, keys, stream, FEATURES) for stream in streams])

    def new_groups(self, iteration: int) -> Tensor | None:
        """Centres (G, D) to reset the groups to, in every K-th iteration, counted from 1."""
        due = iteration > 1 and iteration % self.recipe.clusters == 0
        return self.model.bank_centers(seed=iteration) if due else None

    def encode(self) -> Tensor:
        """Target features (N, D) of all images, un-augmented."""
        return torch.cat([self.model.encode(self.preprocess(images)) for images, _ in self.inputs.blocks()])

    def cluster(self, features: Tensor) -> None:
        """New pseudo-labels from features (N, D)."""
        recipe = self.recipe
        found = spherical_kmeans(features, recipe.clusters, restarts=recipe.restarts, seed=0, empty="reseed")
        self.labels = found.labels

    def run_estep(self) -> None:
        """The E-step."""
        self.cluster(self.encode())
