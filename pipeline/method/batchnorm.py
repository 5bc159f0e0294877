"""BatchNorm with the statistics of the global batch, on any backend, CPU included.

torch's SyncBatchNorm refuses CPU tensors; this one needs only an all-reduce. It can also take several stacked
batches at once (`blocks`), each normalised by its own statistics: DigPro's two views go through a network in one
call and one collective, with the numbers of two calls in a row.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.collectives import all_stack, all_sum, world_size


class _Normalize(torch.autograd.Function):
    """y = (x - mean) / std * weight + bias with the mean and variance of each block over all workers.

    x is (V*B, C, ...): V stacked blocks of B rows. It is divided into blocks in here: if the output were a view, an
    in-place ReLU behind it would cost autograd a copy of the whole gradient. Products and sums are separate steps
    because `addcmul` with two broadcast factors is not vectorised on a CPU and takes three times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, blocks: int, eps: float) -> tuple[Tensor, ...]:
        stacked = _blocks(x, blocks)
        mean, var, count = _global_moments(stacked)
        inv_std = torch.rsqrt(var + eps)
        scale = inv_std * weight
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        out = y.view_as(stacked)
        torch.mul(stacked, _per_channel(scale, x), out=out).add_(_per_channel(bias - mean * scale, x))
        ctx.save_for_backward(x, weight, mean, inv_std, count)
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inv_std, count = ctx.saved_tensors
        x, dy = _blocks(x, len(mean)), _blocks(grad, len(mean))
        dy_sum, dy_xhat = _backward_sums(dy, x, mean, inv_std)
        total = all_sum(torch.stack([dy_sum, dy_xhat])) / count
        scale = inv_std * weight
        slope = -scale * inv_std * total[1]
        offset = -scale * total[0] - slope * mean
        dx = torch.mul(dy, _per_channel(scale, x)).add_(_per_channel(offset, x)).addcmul_(x, _per_channel(slope, x))
        return dx.view(grad.shape), dy_xhat.sum(0), dy_sum.sum(0), None, None


def _blocks(x: Tensor, blocks: int) -> Tensor:
    """(V*B, C, ...) as (V, B, C, L): V blocks of B rows, C channels, L positions."""
    return x.reshape(blocks, len(x) // blocks, x.shape[1], -1)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """(V, C) statistics, shaped to broadcast over (V, B, C, L) in its precision."""
    return values[:, None, :, None].to(like.dtype)


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (V, C) over rows, positions and workers, and the number of values behind them.

    Workers' moments are merged by Chan's formula: summing squares instead would cancel in float32.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, var = _moments(x.to(wide))
    counts = torch.full_like(mean, x.shape[1] * x.shape[3])
    means, variances, counts = all_stack(torch.stack([mean, var, counts])).unbind(1)
    count = counts.sum(0)
    mean = (means * counts).sum(0) / count
    var = ((variances + (means - mean) ** 2) * counts).sum(0) / count
    return mean, var, count


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (V, C) over this worker's rows and positions, about the mean so that it cannot cancel.

    In two passes on a CPU, where torch's own kernel takes five times as long; sums in stages keep its precision.
    """
    if x.is_cuda:
        moments = [torch.batch_norm_update_stats(block, None, None, 0.0) for block in x]
        return torch.stack([mean for mean, _ in moments]), torch.stack([var for _, var in moments])
    size = x.shape[1] * x.shape[3]
    mean = x.sum(dim=3).sum(dim=1) / size
    return mean, (x - _per_channel(mean, x)).square_().sum(dim=3).sum(dim=1) / size


def _backward_sums(dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor) -> tuple[Tensor, Tensor]:
    """Per block and channel: sum of dy, and of dy times the normalised x, over this worker's rows."""
    wide = mean.dtype
    dy_sum = dy.sum(dim=(1, 3), dtype=wide)
    dy_x = (dy * x).sum(dim=(1, 3), dtype=wide)
    return dy_sum, (dy_x - mean * dy_sum) * inv_std


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
        y, mean, var, count = cast(
            tuple[Tensor, ...], _Normalize.apply(x, self.weight, self.bias, self.blocks, self.eps)
        )
        self._move_running(mean, var * (count / (count - 1)))
        return y

    @torch.no_grad()
    def _move_running(self, mean: Tensor, var: Tensor) -> None:
        for block_mean, block_var in zip(mean, var, strict=True):
            self.running_mean.lerp_(block_mean, self.momentum)
            self.running_var.lerp_(block_var, self.momentum)


def _what_follows(norm: nn.Module, replaced: nn.Module) -> nn.Module:
    """The norm with what a subclass of torch's applies behind it: timm's have a dropout and an activation."""
    if type(replaced) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return norm
    children = dict(replaced.named_children())
    if set(children) != {"drop", "act"}:
        raise ValueError(f"{type(replaced).__name__} cannot be made global; use torch's BatchNorm in the encoder")
    return nn.Sequential(norm, children["drop"], children["act"])


def use_global_batchnorm(module: nn.Module, blocks: int = 1) -> nn.Module:
    """Replace every torch BatchNorm inside `module` by a GlobalBatchNorm with the same weights and statistics.

    ValueError for one without weights, running statistics or a fixed momentum, which GlobalBatchNorm does not have.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            if not child.affine or not child.track_running_stats or child.momentum is None:
                raise ValueError(f"{name}: {child} cannot be made global; give it weights, statistics and a momentum")
            norm = GlobalBatchNorm(child.num_features, blocks=blocks, eps=child.eps, momentum=child.momentum)
            norm.to(child.weight)  # first: a float64 state would lose bits in float32
            state = child.state_dict()
            state.pop("num_batches_tracked")
            norm.load_state_dict(state, strict=False)  # a subclass may have more, which `_what_follows` keeps
            setattr(module, name, _what_follows(norm, child))
        else:
            use_global_batchnorm(child, blocks)
    return module
