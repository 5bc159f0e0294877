"""An encoder small enough for two cores to train on millions of 8-pixel images; it counts its training steps.

    digpro train --set model.encoder=python:benchmarks.small_encoder:build ...

If the environment variable DIGPRO_BENCHMARK_STEPS (`LEDGER`) names a folder, each process that trains keeps a file
there with one byte for each of its steps. Unlike a checkpoint, such a file also has the steps that a kill undoes.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

LEDGER = "DIGPRO_BENCHMARK_STEPS"
CHANNELS = 32


class SmallEncoder(nn.Sequential):
    """One strided convolution: images (B, 3, H, W) to features (B, CHANNELS * 2 * 2)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features; in a step only the online network's pass has gradients and is counted."""
        if self.training and torch.is_grad_enabled():
            note_step()
        features: Tensor = super().forward(images)
        return features


def build() -> nn.Module:
    """The encoder, as `model.encoder` wants it."""
    return SmallEncoder()


def note_step() -> None:
    """Add a byte to this process's file; nothing without a folder for it."""
    if folder := os.environ.get(LEDGER):
        with open(Path(folder) / str(os.getpid()), "ab", buffering=0) as file:
            file.write(b".")


def steps_made(folder: Path) -> int:
    """Steps of the process that has made the most; 0 if none has made any."""
    return max((file.stat().st_size for file in folder.iterdir()), default=0)
