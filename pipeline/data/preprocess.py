"""Stub."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Preprocess(nn.Module):
    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([s or 1.0 for s in std], dtype=torch.float32).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float().div_(255).permute(0, 3, 1, 2)
        if pixels.shape[2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        return pixels.sub(self.mean).div(self.std).contiguous()
