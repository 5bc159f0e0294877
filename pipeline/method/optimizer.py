"""SGD over online network and predictor, the predictor with its own learning rate (the reference code's set-up)."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD

from pipeline.method.digpro import DigPro


def build_optimizer(
    model: DigPro, *, lr: float, momentum: float, weight_decay: float, decay_bias_and_norm: bool = True
) -> SGD:
    """Groups in fixed order: online with and without decay, then predictor with and without.

    The reference decays every tensor; `decay_bias_and_norm=False` leaves one-dimensional ones out.
    """
    groups = []
    for module, is_predictor in ((model.networks.online, False), (model.predictor, True)):
        for decays in (True, False):
            chosen = [p for p in module.parameters() if _decays(p, decay_bias_and_norm) == decays]
            decay = weight_decay if decays else 0.0
            groups.append({"params": chosen, "weight_decay": decay, "is_predictor": is_predictor})
    return SGD(groups, lr=lr, momentum=momentum)


def _decays(parameter: nn.Parameter, decay_bias_and_norm: bool) -> bool:
    return decay_bias_and_norm or parameter.dim() > 1


def set_learning_rates(optimizer: SGD, lr: float, predictor_lr: float) -> None:
    """Set this step's rates."""
    for group in optimizer.param_groups:
        group["lr"] = predictor_lr if group["is_predictor"] else lr
