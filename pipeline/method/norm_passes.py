"""The four passes of batch normalisation over memory, as operators: each with a CPU and a CUDA implementation.

Operators declare their shapes without data (`register_fake`), so `torch.compile` and fake tensors support them.
The implementations are the kernels of torch's own BatchNorm and, on CUDA, of its SyncBatchNorm, which are vectorised
for channels first and last. An input is x (V*B, C, ...), dense in one of these layouts: V stacked blocks of B rows,
each with its own statistics (V, C), in float32 or wider.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op


@custom_op("digpro::moments", mutates_args=(), device_types=("cpu", "cuda"))
def moments(x: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (V, C) over this worker's rows and positions; about the mean, to avoid cancellation."""
    found = [torch.batch_norm_update_stats(block, None, None, 0.0) for block in x.chunk(blocks)]
    mean, var = (torch.stack(values).to(_wide(x)) for values in zip(*found, strict=True))
    return mean, var


@moments.register_fake
def _moments_without_data(x: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    mean = x.new_empty((blocks, x.shape[1]), dtype=_wide(x))
    return mean, torch.empty_like(mean)


@custom_op("digpro::normalize", mutates_args=(), device_types="cpu")
def normalize(x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(x - mean) inv_std weight + bias, in x's shape, layout and precision."""
    y, scale = torch.empty_like(x), inv_std * weight
    for block, out, a, b in zip(x.chunk(len(mean)), y.chunk(len(mean)), scale, bias - mean * scale, strict=True):
        _scale_and_shift(block, a, b, out)
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
    """Per block and channel the sums (2, V, C) of dy, and of dy times the normalised x, over this worker's rows.

    They are the gradients of bias and weight of a BatchNorm in evaluation mode.
    """
    found = []
    for dy_block, block, m, s in zip(dy.chunk(len(mean)), x.chunk(len(mean)), mean, inv_std, strict=True):
        _, dy_xhat, dy_sum = torch.ops.aten.native_batch_norm_backward(
            dy_block, block, None, m, s.pow(-2), None, None, False, 0.0, [False, True, True]
        )
        found.append(torch.stack([dy_sum, dy_xhat]))
    return torch.stack(found, dim=1).to(mean.dtype)


@gradient_sums.register_kernel("cuda")
def _gradient_sums_on_cuda(dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor) -> Tensor:
    rows = zip(dy.chunk(len(mean)), x.chunk(len(mean)), mean, inv_std, strict=True)
    found = [torch.batch_norm_backward_reduce(*row, None, True, False, False)[:2] for row in rows]
    dy_sum, dy_centered = (torch.stack(sums) for sums in zip(*found, strict=True))
    return torch.stack([dy_sum, dy_centered * inv_std])


@gradient_sums.register_fake
def _gradient_sums_without_data(dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor) -> Tensor:
    return mean.new_empty((2, *mean.shape))


@custom_op("digpro::input_gradient", mutates_args=(), device_types="cpu")
def input_gradient(dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, means: Tensor) -> Tensor:
    """The gradient of x, from the means (2, V, C) over all workers of what `gradient_sums` sums up."""
    dx, scale = torch.empty_like(x), inv_std * weight
    slope = -scale * inv_std * means[1]
    shift = -scale * means[0] - slope * mean
    parts = (tensor.chunk(len(mean)) for tensor in (dy, x, dx))
    for dy_block, block, out, a, b, c in zip(*parts, scale, shift, slope, strict=True):
        _scale_and_shift(dy_block, a, b, out)
        out.addcmul_(block, c.to(x.dtype).view(-1, *[1] * (x.dim() - 2)))
    return dx


@input_gradient.register_kernel("cuda")
def _input_gradient_on_cuda(
    dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, means: Tensor
) -> Tensor:
    one = torch.ones(1, dtype=torch.int32, device=x.device)  # the kernel divides sums by a count; these are means
    rows = zip(dy.chunk(len(mean)), x.chunk(len(mean)), mean, inv_std, means[0], means[1] / inv_std, strict=True)
    parts = [
        torch.batch_norm_backward_elemt(dy_block, block, m, s, weight, mean_dy, mean_dy_centered, one)
        for dy_block, block, m, s, mean_dy, mean_dy_centered in rows
    ]
    return torch.cat(parts)


@input_gradient.register_fake
def _input_gradient_without_data(
    dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, means: Tensor
) -> Tensor:
    return torch.empty_like(x)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """x (B, C, ...) times scale (C,) plus shift (C,): a BatchNorm in evaluation mode of mean 0 and variance 1."""
    zero, one, unused = torch.zeros_like(scale), torch.ones_like(scale), scale.new_empty(0)
    torch.native_batch_norm(x, scale, shift, zero, one, False, 0.0, 0.0, out=(out, unused, unused))
