"""Trains on UC-Merced at the reference's settings, for as many epochs as there is time; the next call resumes.

Needs only torch and torchvision. All random numbers are keyed by (seed, epoch, image), so training in many calls
equals training in a single call.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.gpu_speeds import run_precision
from benchmarks.loop import Loop, Recipe

SAVE_SECONDS = 20  # between two checkpoints: an epoch on a GPU takes less time than writing the 0.3 GB of one


def read_images(folder: Path, side: int = 256) -> tuple[Tensor, Tensor]:
    """Images (N, side, side, 3) uint8 of a folder with a sub-folder for each class, and their classes (N,)."""
    steps = v2.Compose([v2.Resize((side, side)), v2.PILToTensor()])
    pictures = ImageFolder(str(folder), steps)
    parts = list(DataLoader(pictures, 64, num_workers=min(os.cpu_count() or 1, len(pictures) // 64)))
    images = torch.cat([images.permute(0, 2, 3, 1) for images, _ in parts])
    return images.contiguous(), torch.cat([classes for _, classes in parts])


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation of the three channels of images (N, H, W, 3) uint8, on the scale from 0 to 1."""
    means, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for block in images.split(256):
        pixels = block.flatten(0, 2).double() / 255
        means += pixels.sum(0) / (images.numel() / 3)
        squares += pixels.square().sum(0) / (images.numel() / 3)
    return means.tolist(), (squares - means**2).sqrt().tolist()


def train(
    images: Tensor, classes: Tensor, recipe: Recipe, checkpoint: Path, deadline: float, device: torch.device
) -> list[dict[str, float]]:
    """Train until `deadline` on time.monotonic's clock; returns loss, NMI and seconds of each epoch of all calls."""
    loop = Loop(images.to(device), recipe, *channel_statistics(images), autocast=run_precision(device))
    history = restore(loop, checkpoint)
    if not history:
        loop.run_estep()
    saved = begun = time.monotonic()
    while loop.epoch < recipe.epochs and time.monotonic() < deadline:
        loss = loop.train_epoch()
        loop.run_estep()
        score = normalized_mutual_information(classes, loop.labels.cpu())
        history.append({"epoch": loop.epoch, "loss": loss, "nmi": score, "seconds": time.monotonic() - begun})
        begun = time.monotonic()
        if begun - saved > SAVE_SECONDS:
            save(loop, history, classes, checkpoint)
            saved = time.monotonic()
    save(loop, history, classes, checkpoint)
    return history


def save(loop: Loop, history: list[dict[str, float]], classes: Tensor, path: Path) -> None:
    """Replace the last checkpoint with all that the next epoch needs, and the pseudo-labels beside the classes."""
    partial = path.with_suffix(".partial")
    values = {"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict(), "labels": loop.labels}
    torch.save(values | {"history": history, "classes": classes}, partial)
    partial.replace(path)


def restore(loop: Loop, path: Path) -> list[dict[str, float]]:
    """Put a checkpoint into the loop; returns the history of its epochs, empty without a checkpoint."""
    if not path.is_file():
        return []
    values = torch.load(path, map_location=loop.labels.device)
    loop.model.load_state_dict(values["model"])
    loop.optimizer.load_state_dict(values["optimizer"])
    loop.labels, history = values["labels"], values["history"]
    loop.epoch = len(history)
    return list(history)


def normalized_mutual_information(first: Tensor, second: Tensor) -> float:
    """Mutual information of two labellings (N,) over the mean of their entropies; scikit-learn may be missing."""
    joint = torch.zeros(int(first.max()) + 1, int(second.max()) + 1, dtype=torch.float64)
    joint.index_put_((first, second), torch.ones((), dtype=torch.float64), accumulate=True)
    joint /= len(first)
    each = entropy(joint.sum(1)) + entropy(joint.sum(0))
    return 2 * (each - entropy(joint)) / each if each else 1.0


def entropy(shares: Tensor) -> float:
    """In nats, of shares that add up to 1."""
    return -float(torch.special.xlogy(shares, shares).sum())
