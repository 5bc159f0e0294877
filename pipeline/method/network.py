"""The online network, its momentum twin, and the update that moves the twin."""

from __future__ import annotations

import copy

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

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

    def ema_update(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * online, in place; ValueError outside [0, 1].

        Weights only: the target's BatchNorm statistics are those of its own inputs.
        """
        target, online = list(self.target.parameters()), list(self.online.parameters())
        get_ema_multi_avg_fn(momentum)(target, online, None)
