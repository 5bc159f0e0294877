"""SGD over online network and predictor, the predictor with its own learning rate (the reference code's set-up)."""

from __future__ import annotations

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
    optimizer = SGD(groups, lr=lr, momentum=momentum, fused=True)  # one kernel for all tensors
    if momentum:
        _start_momenta(optimizer)
    return optimizer


def _start_momenta(optimizer: SGD) -> None:
    """Start with momenta of zero: the first step computes the same with them, and may be skipped.

    Otherwise torch allocates them in the first step and fills them in the kernel, which does nothing in a skipped step.
    The next step would then add its gradients to whatever the memory held.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _decays(parameter: nn.Parameter, decay_bias_and_norm: bool) -> bool:
    return decay_bias_and_norm or parameter.dim() > 1


def set_learning_rates(optimizer: SGD, lr: float, predictor_lr: float) -> None:
    """Set this step's rates."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr_factor"] * (predictor_lr if group["is_predictor"] else lr)


@torch.no_grad()
def step_if_finite(optimizer: SGD) -> Tensor:
    """Move the weights if the norm of their gradients is finite; otherwise weights and momenta stay unchanged.

    Nothing waits for the device. DistributedDataParallel averages the gradients, so they are the same on every worker,
    and a value that is not finite on one is in the average of all. The answer is the same everywhere without another
    exchange.

    Returns
    -------
    Tensor () bool
        Whether the norm is finite.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    finite = torch.isfinite(nn.utils.get_total_norm(gradients))
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # torch's fused kernels skip where it is 1
    optimizer.step()
    return finite
