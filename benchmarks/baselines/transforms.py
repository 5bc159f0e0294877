"""Augmentation as most code does it: torchvision's transforms, image by image, on a DataLoader's workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.loop import BLOCK, MEAN, STD, Recipe

View = Callable[[Any], Tensor]


def torchvision_view(policy: Any, *, from_pil: bool) -> View:
    """The augmentation of a `ViewsConfig` as a torchvision transform of one image."""
    jitter = v2.ColorJitter(policy.brightness, policy.contrast, policy.saturation, policy.hue)
    steps: list[Any] = [v2.RandomRotation(policy.rotation)] if policy.rotation else []
    steps += [v2.RandomResizedCrop(policy.size, policy.crop_scale, policy.crop_ratio, antialias=True)]
    steps += [v2.RandomHorizontalFlip(policy.horizontal_flip)] if policy.horizontal_flip else []
    steps += [v2.RandomApply([jitter], policy.jitter)] if policy.jitter else []
    steps += [v2.RandomGrayscale(policy.grayscale)] if policy.grayscale else []
    return v2.Compose([*steps, *normalized_tensor(from_pil=from_pil)])


def evaluation_view(size: int) -> View:
    """The whole image, resized, as the E-step sees it."""
    return v2.Compose([v2.Resize((size, size)), *normalized_tensor(from_pil=True)])


def normalized_tensor(*, from_pil: bool) -> list[Any]:
    """The last steps of every view: a float32 tensor (3, H, W) with standardised channels."""
    return [
        *([v2.PILToTensor()] if from_pil else []),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]


class Pictures(Dataset[tuple[Any, ...]]):
    """Images (N, H, W, 3) uint8 as PIL images, each as its views and its index."""

    def __init__(self, images: NDArray[np.uint8], *views: View) -> None:
        self.images, self.views = images, views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        picture = Image.fromarray(self.images[index])
        return *(view(picture) for view in self.views), index


def make_loaders(
    images: NDArray[np.uint8], view: View, recipe: Recipe, workers: int
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Batches of two views to train on, and the whole images of the E-step."""
    train = make_loader(Pictures(images, view, view), recipe.batch, workers, train=True)
    return train, make_loader(Pictures(images, evaluation_view(recipe.size)), BLOCK, workers, train=False)


def make_loader(pictures: Dataset[Any], batch: int, workers: int, *, train: bool) -> DataLoader[Any]:
    """Whole batches in random order to train on, or all images in order. The workers stay for the next epoch."""
    return DataLoader(
        pictures,
        batch,
        shuffle=train,
        drop_last=train,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
