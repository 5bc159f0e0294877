"""Encoders and the two small heads behind them (DigPro section 3.1; sizes as in the reference code)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import did_you_mean

LEAST_DEVIATION = 1e-6  # of a unit vector's entry; one that varies less counts as constant, and is only centred
RESNETS = ("resnet18", "resnet34", "resnet50")


def build_encoder(name: str, *, small_stem: bool = False) -> tuple[nn.Module, int]:
    """An encoder for images (B, 3, H, W) and the size of the vectors (B, size) that it returns.

    Parameters
    ----------
    name : {"tiny", "resnet18", "resnet34", "resnet50"}
        `tiny` is four convolutions for images of about 16 pixels; the others are torchvision's, without weights.
    small_stem : bool
        3x3 stride-1 first convolution and no max-pool, for images up to about 64 pixels. `tiny` always has one.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if name == "tiny":
        return _tiny(), 128
    if name not in RESNETS:
        known = ("tiny", *RESNETS)
        raise ValueError(f"unknown encoder {name!r} (known: {', '.join(known)}){did_you_mean(name, known)}")
    import torchvision

    resnet = torchvision.models.get_model(name, weights=None)
    if small_stem:
        resnet.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
    size = resnet.fc.in_features
    resnet.fc = nn.Identity()
    return resnet, size


def _tiny() -> nn.Module:
    """Four convolutions, three of which halve the resolution: (B, 3, H, W) to (B, 128)."""
    layers: list[nn.Module] = []
    for channels_in, channels, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 128, 2)):
        conv = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Standardize(nn.Module):
    """Scales features (B, size) of a frozen backbone to unit length, then each to mean 0, deviation 1 over a data set.

    It is the encoder when heads are trained on such features. Without it the few features with large values dominate.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def fit(self, blocks: Iterable[Tensor]) -> None:
        """Take mean and deviation from blocks (n, size) of the un-augmented features of all images."""
        count, sums, squares = 0, torch.zeros(()), torch.zeros(())
        for block in blocks:
            unit = F.normalize(block.double(), dim=1)
            count, sums, squares = count + len(unit), sums + unit.sum(0), squares + unit.square().sum(0)
        mean = sums / count
        deviation = (squares / count - mean**2).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(deviation > LEAST_DEVIATION, deviation, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """(u - mean) / std of the unit vectors u."""
        return (F.normalize(features, dim=1) - self.mean) / self.std


def build_head(size_in: int, hidden: int, size_out: int) -> nn.Sequential:
    """Linear - BatchNorm - ReLU - Linear, with torch's default weights: the projector's form."""
    return nn.Sequential(
        nn.Linear(size_in, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, size_out)
    )


def build_predictor(size: int, hidden: int) -> nn.Sequential:
    """The predictor: a head from features to features that starts near zero, weights N(0, 0.01^2), biases 0."""
    head = build_head(size, hidden, size)
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    return head
