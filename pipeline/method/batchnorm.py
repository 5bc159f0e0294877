"""BatchNorm with the statistics of the global batch, on any backend, CPU included.

torch's SyncBatchNorm refuses CPU tensors; this one needs only an all-reduce. It can also take several stacked
batches at once (`blocks`), each normalised by its own statistics: DigPro's two views go through a network in one
call and one collective, with the same numbers as two calls in a row. A single GPU needs no collective, and uses torch's
own kernels; so does a network compiled for one worker.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.collectives import all_stack, all_sum, world_size
from pipeline.method import norm_passes


class _Normalize(torch.autograd.Function):
    """y = (x - mean) / std * weight + bias with the mean and variance of each block over all workers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, blocks: int, eps: float) -> tuple[Tensor, ...]:
        mean, var, count = _global_moments(x, blocks)
        inv_std = torch.rsqrt(var + eps)
        y = norm_passes.normalize(x, mean, inv_std, weight, bias)
        ctx.save_for_backward(x, weight, mean, inv_std, count)
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inv_std, count = ctx.saved_tensors
        dy = grad.contiguous(memory_format=_layout(x))
        sums = norm_passes.gradient_sums(dy, x, mean, inv_std)
        dx = norm_passes.input_gradient(dy, x, mean, inv_std, weight, all_sum(sums) / count)
        dy_sum, dy_xhat = sums.sum(dim=1).unbind()
        return dx, dy_xhat, dy_sum, None, None


def _layout(x: Tensor) -> torch.memory_format:
    """Channels last where x has them last."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _global_moments(x: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (V, C) over rows, positions and workers, and the number of values behind each.

    Workers' moments are merged by Chan's formula: summing squares instead would cancel in float32.
    """
    mean, var = norm_passes.moments(x, blocks)
    if world_size() == 1:
        return mean, var, mean.new_full((), x.numel() // (blocks * x.shape[1]))
    counts = torch.full_like(mean, x.numel() // (blocks * x.shape[1]))
    means, variances, counts = all_stack(torch.stack([mean, var, counts])).unbind(1)
    count = counts.sum(0)
    mean = (means * counts).sum(0) / count
    var = ((variances + (means - mean) ** 2) * counts).sum(0) / count
    return mean, var, count


class GlobalBatchNorm(nn.Module):
    """Batch normalisation over the batches of all workers, for inputs (V*B, C) or (V*B, C, H, W).

    Parameters
    ----------
    num_features : int
        C.
    blocks : int
        V: in training the input is V stacked batches of equal length, each normalised by its own statistics, and
        the running statistics move V times, in order.

    Names, defaults and running statistics (unbiased variance) are those of torch.nn.BatchNorm1d and 2d.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, blocks: int = 1, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.blocks, self.eps, self.momentum = blocks, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; ValueError when the rows do not divide into blocks or a block has a single value."""
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        if len(x) % self.blocks:
            raise ValueError(f"{len(x)} rows do not divide into {self.blocks} blocks of equal length")
        if x.numel() * world_size() == self.blocks * x.shape[1]:
            raise ValueError(
                f"an input of {tuple(x.shape)} has 1 value per channel and block; variance needs 2 or more"
            )
        if world_size() == 1 and (x.device.type != "cpu" or torch.compiler.is_compiling()):
            return self._by_torch(x)
        return self._by_passes(x.contiguous(memory_format=_layout(x)))

    def _by_passes(self, x: Tensor) -> Tensor:
        """Normalise by the statistics of all workers."""
        y, mean, var, count = cast(
            tuple[Tensor, ...], _Normalize.apply(x, self.weight, self.bias, self.blocks, self.eps)
        )
        self._move_running(mean, var * (count / (count - 1)))
        return y

    def _by_torch(self, x: Tensor) -> Tensor:
        """The same by torch's own kernels, block by block: the fastest on a GPU, and a compiler can fuse them."""
        weights = self.running_mean, self.running_var, self.weight, self.bias
        blocks = x.split(len(x) // self.blocks)
        return torch.cat([nn.functional.batch_norm(b, *weights, True, self.momentum, self.eps) for b in blocks])

    @torch.no_grad()
    def _move_running(self, mean: Tensor, var: Tensor) -> None:
        for block_mean, block_var in zip(mean, var, strict=True):
            self.running_mean.lerp_(block_mean, self.momentum)
            self.running_var.lerp_(block_var, self.momentum)


def _what_follows(norm: nn.Module, replaced: nn.Module) -> nn.Module:
    """The norm and the layers that a subclass of torch's applies after it: timm's have a dropout and an activation."""
    if type(replaced) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return norm
    children = dict(replaced.named_children())
    if set(children) != {"drop", "act"}:
        raise ValueError(
            f"{type(replaced).__name__} cannot be computed over all workers; use torch's BatchNorm in the encoder"
        )
    return nn.Sequential(norm, children["drop"], children["act"])


def use_global_batchnorm(module: nn.Module, blocks: int = 1) -> nn.Module:
    """Replace every torch BatchNorm inside `module` by a GlobalBatchNorm with the same weights and statistics.

    ValueError for one without weights, running statistics or a fixed momentum, which GlobalBatchNorm does not have.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            if not child.affine or not child.track_running_stats or child.momentum is None:
                raise ValueError(
                    f"{name}: {child} cannot be computed over all workers; give it weights, statistics and a momentum"
                )
            norm = GlobalBatchNorm(child.num_features, blocks=blocks, eps=child.eps, momentum=child.momentum)
            norm.to(child.weight)  # first: a float64 state would lose bits in float32
            state = child.state_dict()
            state.pop("num_batches_tracked")
            norm.load_state_dict(state, strict=False)  # a subclass may have more, which `_what_follows` keeps
            setattr(module, name, _what_follows(norm, child))
        else:
            use_global_batchnorm(child, blocks)
    return module
