"""The online network, its momentum twin, and the step by which the twin follows."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pipeline.method.batchnorm import use_global_batchnorm


class OnlineTarget(nn.Module):
    """Encoder and projector twice: `online` learns by gradient, `target` follows it by momentum.

    Both take two stacked views (2B, C, H, W), normalise each view by its own global-batch statistics, and return
    features (2B, D), not normalised.
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        network = nn.Sequential()
        network.add_module("encoder", encoder)
        network.add_module("projector", projector)
        self.online = use_global_batchnorm(network, blocks=2)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * online, weights only: BatchNorm statistics are its own."""
        target: list[Tensor] = [*self.target.parameters()]
        online: list[Tensor] = [*self.online.parameters()]
        torch._foreach_lerp_(target, online, weight=1 - momentum)
