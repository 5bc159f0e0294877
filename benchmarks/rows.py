"""Rows that resemble the features of an E-step: noisy directions around K centres."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def make_rows(count: int, size: int, clusters: int, noise: float, device: torch.device | str = "cpu") -> Tensor:
    """Unit rows (count, size) around `clusters` directions; `noise` is its length relative to a centre's."""
    generator = torch.Generator(device).manual_seed(0)
    centers = F.normalize(torch.randn(clusters, size, generator=generator, device=device), dim=1)
    rows = centers[torch.randint(clusters, (count,), generator=generator, device=device)]
    rows += noise / size**0.5 * torch.randn(count, size, generator=generator, device=device)
    return F.normalize(rows, dim=1, out=rows)
