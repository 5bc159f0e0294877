"""The four passes of batch normalisation over memory, as operators: each with a CPU and a CUDA implementation.

Operators have a shape without data (`register_fake`), so that `torch.compile` and fake tensors take them as they are.
On CUDA they are the kernels behind torch's SyncBatchNorm, which also know channels_last. An input is x (V*B, C, ...):
V stacked blocks of B rows, each with its own statistics (V, C), in float32 or wider.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op


@custom_op("digpro::moments", mutates_args=(), device_types="cpu")
def moments(x: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (V, C) over this worker's rows and positions.

    About the mean, so that it cannot cancel. In two passes on a CPU, where torch's own kernel takes five times as long;
    sums in stages keep its precision.
    """
    stacked = _blocks(x, blocks).to(_wide(x))
    size = stacked.shape[1] * stacked.shape[3]
    mean = stacked.sum(dim=3).sum(dim=1) / size
    return mean, (stacked - _per_channel(mean, stacked)).square_().sum(dim=3).sum(dim=1) / size


@moments.register_kernel("cuda")
def _moments_on_cuda(x: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    found = [torch.batch_norm_update_stats(block, None, None, 0.0) for block in x.chunk(blocks)]
    return torch.stack([mean for mean, _ in found]), torch.stack([var for _, var in found])


@moments.register_fake
def _moments_without_data(x: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    mean = x.new_empty((blocks, x.shape[1]), dtype=_wide(x))
    return mean, torch.empty_like(mean)


@custom_op("digpro::normalize", mutates_args=(), device_types="cpu")
def normalize(x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(x - mean) inv_std weight + bias, in x's shape and precision.

    Product and sum are separate steps because `addcmul` with two broadcast factors is not vectorised on a CPU and takes
    three times as long.
    """
    stacked, scale = _blocks(x, len(mean)), inv_std * weight
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.mul(stacked, _per_channel(scale, x), out=y.view_as(stacked)).add_(_per_channel(bias - mean * scale, x))
    return y


@normalize.register_kernel("cuda")
def _normalize_on_cuda(x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = torch.empty_like(x)
    for block, out, m, s in zip(x.chunk(len(mean)), y.chunk(len(mean)), mean, inv_std, strict=True):
        torch.batch_norm_elemt(block, weight, bias, m, s, 0.0, out=out)
    return y


@normalize.register_fake
def _normalize_without_data(x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x)


@custom_op("digpro::gradient_sums", mutates_args=(), device_types="cpu")
def gradient_sums(dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor) -> Tensor:
    """Per block and channel the sums (2, V, C) of dy, and of dy times the normalised x, over this worker's rows."""
    stacked, slope = _blocks(x, len(mean)), _blocks(dy, len(mean))
    dy_sum = slope.sum(dim=(1, 3), dtype=mean.dtype)
    dy_x = (slope * stacked).sum(dim=(1, 3), dtype=mean.dtype)
    return torch.stack([dy_sum, (dy_x - mean * dy_sum) * inv_std])


@gradient_sums.register_kernel("cuda")
def _gradient_sums_on_cuda(dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor) -> Tensor:
    rows = zip(dy.chunk(len(mean)), x.chunk(len(mean)), mean, inv_std, strict=True)
    found = [torch.batch_norm_backward_reduce(*row, None, True, False, False)[:2] for row in rows]
    dy_sum, dy_centred = (torch.stack(sums) for sums in zip(*found, strict=True))
    return torch.stack([dy_sum, dy_centred * inv_std])


@gradient_sums.register_fake
def _gradient_sums_without_data(dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor) -> Tensor:
    return mean.new_empty((2, *mean.shape))


@custom_op("digpro::input_gradient", mutates_args=(), device_types="cpu")
def input_gradient(dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, means: Tensor) -> Tensor:
    """The gradient of x, from the means (2, V, C) over all workers of what `gradient_sums` sums up."""
    stacked, dy_blocks, scale = _blocks(x, len(mean)), _blocks(dy, len(mean)), inv_std * weight
    slope = -scale * inv_std * means[1]
    offset = -scale * means[0] - slope * mean
    dx = torch.mul(dy_blocks, _per_channel(scale, x)).add_(_per_channel(offset, x))
    return dx.addcmul_(stacked, _per_channel(slope, x)).view(dy.shape)


@input_gradient.register_kernel("cuda")
def _input_gradient_on_cuda(
    dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, means: Tensor
) -> Tensor:
    one = torch.ones(1, dtype=torch.int32, device=x.device)  # the kernel divides sums by a count; these are means
    rows = zip(dy.chunk(len(mean)), x.chunk(len(mean)), mean, inv_std, means[0], means[1] / inv_std, strict=True)
    parts = [
        torch.batch_norm_backward_elemt(dy_block, block, m, s, weight, mean_dy, mean_dy_centred, one)
        for dy_block, block, m, s, mean_dy, mean_dy_centred in rows
    ]
    return torch.cat(parts)


@input_gradient.register_fake
def _input_gradient_without_data(
    dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, means: Tensor
) -> Tensor:
    return torch.empty_like(x)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _blocks(x: Tensor, blocks: int) -> Tensor:
    """(V*B, C, ...) as (V, B, C, L): V blocks of B rows, C channels, L positions."""
    return x.reshape(blocks, len(x) // blocks, x.shape[1], -1)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """(V, C) statistics, shaped to broadcast over (V, B, C, L) in its precision."""
    return values[:, None, :, None].to(like.dtype)
