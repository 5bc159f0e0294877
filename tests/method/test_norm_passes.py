"""What CUDA implementations make of torch's kernels. No test here can run those: stand-ins do what they document."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.method import norm_passes
from tests.helpers.golden import assert_close


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _along(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _others(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float, *, out: Tensor) -> Tensor:
    return out.copy_((x - _along(mean, x)) * _along(invstd * weight, x) + _along(bias, x))


def _backward_reduce(
    dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: None, input_g: bool, weight_g: bool, bias_g: bool
) -> tuple[Tensor, ...]:
    return dy.sum(_others(x)), (dy * (x - _along(mean, x))).sum(_others(x)), torch.empty(0), torch.empty(0)


def _backward_elemt(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    total = count.sum()
    centered = (x - _along(mean, x)) * _along(invstd**2 * sum_dy_xmu / total, x)
    return (dy - _along(sum_dy / total, x) - centered) * _along(invstd * weight, x)


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 3, 4)])
def test_the_kernels_are_called_for_what_the_cpu_computes(
    shape: tuple[int, ...], blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins = (_elemt, _backward_reduce, _backward_elemt)
    for name, stand_in in zip(("elemt", "backward_reduce", "backward_elemt"), stand_ins, strict=True):
        monkeypatch.setattr(torch, f"batch_norm_{name}", stand_in)
    x, dy, weight, bias = noise(*shape) + 3, noise(*shape, seed=1), noise(5, seed=2), noise(5, seed=3)
    mean, var = norm_passes.moments(x, blocks)
    inv_std, means = torch.rsqrt(var + 1e-5), noise(2, blocks, 5, seed=4)
    normalized = norm_passes._normalize_on_cuda(x, mean, inv_std, weight, bias)
    assert_close(normalized, norm_passes.normalize(x, mean, inv_std, weight, bias), rtol=1e-12)
    sums = norm_passes._gradient_sums_on_cuda(dy, x, mean, inv_std)
    assert_close(sums, norm_passes.gradient_sums(dy, x, mean, inv_std), rtol=1e-12)
    dx = norm_passes._input_gradient_on_cuda(dy, x, mean, inv_std, weight, means)
    assert_close(dx, norm_passes.input_gradient(dy, x, mean, inv_std, weight, means), rtol=1e-12)
