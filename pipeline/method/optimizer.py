"""SGD over online network and predictor, the predictor with its own learning rate (the reference code's set-up)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import SGD

from pipeline.method.digpro import DigPro


def build_optimizer(
    model: DigPro,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    decay_bias_and_norm: bool = True,
    encoder_lr_factor: float = 1.0,
) -> SGD:
    """Groups in fixed order: online with and without decay, then predictor with and without.

    The reference decays every tensor; `decay_bias_and_norm=False` leaves one-dimensional ones out. With an
    `encoder_lr_factor` the encoder has groups of its own before the projector's.
    """
    online = model.networks.online
    parts: list[tuple[nn.Module, float]] = [(online, 1.0)]
    if encoder_lr_factor != 1:
        encoder, projector = (online.get_submodule(name) for name in ("encoder", "projector"))
        parts = [(encoder, encoder_lr_factor), (projector, 1.0)]
    groups = []
    for module, factor in [*parts, (model.predictor, 1.0)]:
        for decays in (True, False):
            chosen = [p for p in module.parameters() if _decays(p, decay_bias_and_norm) == decays]
            decay = weight_decay if decays else 0.0
            is_predictor = module is model.predictor
            groups.append({"params": chosen, "weight_decay": decay, "is_predictor": is_predictor, "lr_factor": factor})
    return SGD(groups, lr=lr, momentum=momentum, fused=True)  # one kernel for all tensors


def _decays(parameter: nn.Parameter, decay_bias_and_norm: bool) -> bool:
    return decay_bias_and_norm or parameter.dim() > 1


def set_learning_rates(optimizer: SGD, lr: float, predictor_lr: float) -> None:
    """Set this step's rates."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr_factor"] * (predictor_lr if group["is_predictor"] else lr)


@torch.no_grad()
def zero_unless_finite(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Set all gradients to 0 where their norm is not finite, so that the step that follows spoils no weight.

    Nothing waits for the device, and gradients that are finite keep their bits. Behind DistributedDataParallel the
    gradients are the same on every worker, and a value that is not finite on one is in the average of all: the answer
    is the same everywhere, and nothing has to be sent for it.

    Returns
    -------
    Tensor () bool
        Whether the norm is finite.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    finite = torch.isfinite(nn.utils.get_total_norm(gradients))
    for gradient in gradients:
        gradient.masked_fill_(~finite, 0)
    return finite
