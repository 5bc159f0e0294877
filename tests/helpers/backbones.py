"""Tiny networks with random weights, as `model.encoder=python:tests.helpers.backbones:...` names them."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from pipeline.backbones.backbone import Backbone, ImageInput

INPUT = ImageInput(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear", 0.8)


def network() -> nn.Module:
    """Two convolutions with BatchNorm: (B, 3, H, W) to (B, 24)."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(5)
    module = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Conv2d(16, 24, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    torch.random.set_rng_state(generator)
    return module


def with_input() -> Backbone:
    """The network, and the images that it expects."""
    return Backbone(network(), INPUT)


class Slow(nn.Module):
    """The network, 30 ms an image slower."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 24)."""
        time.sleep(0.03 * len(x))
        return self.network(x)  # type: ignore[no-any-return]


def slow() -> Backbone:
    """As `with_input`, for tests that need time while features are computed."""
    return Backbone(Slow(), INPUT)


def maps() -> nn.Module:
    """Returns maps and not vectors."""
    return nn.Conv2d(3, 4, 3)


def not_a_module() -> int:
    """Returns something else."""
    return 3
