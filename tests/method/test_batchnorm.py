"""GlobalBatchNorm: torch's values, gradients and running statistics; blocks; two workers equal one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.method.batchnorm import GlobalBatchNorm, use_global_batchnorm
from tests.helpers.golden import assert_close
from tests.helpers.workers import Workers

SHAPES = {nn.BatchNorm1d: (12, 5), nn.BatchNorm2d: (12, 5, 3, 4)}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _norm(kind: type[nn.Module], blocks: int = 1) -> nn.Module:
    """One layer that scales and shifts, torch's own or ours in place of a BatchNorm1d."""
    norm = kind(5, momentum=0.3) if kind is not GlobalBatchNorm else GlobalBatchNorm(5, momentum=0.3, blocks=blocks)
    with torch.no_grad():
        norm.weight.copy_(noise(5, seed=1))
        norm.bias.copy_(noise(5, seed=2))
    return norm.double()


def _pass(norm: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """One training pass and its gradients, and what it leaves in the running statistics."""
    x = x.detach().requires_grad_()
    y = norm(x)
    y.backward(dy)
    statistics = {name: norm.get_buffer(name).clone() for name in ("running_mean", "running_var")}
    return {"y": y.detach(), "dx": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad, **statistics}


@pytest.mark.parametrize("kind", SHAPES)
def test_training_equals_torch(kind: type[nn.Module]) -> None:
    x, dy = 3 * noise(*SHAPES[kind]) + 7, noise(*SHAPES[kind], seed=3)
    expected = _pass(_norm(kind), x, dy)
    for name, value in _pass(_norm(GlobalBatchNorm), x, dy).items():
        assert_close(value, expected[name], rtol=1e-12)


@pytest.mark.parametrize("kind", SHAPES)
def test_evaluation_uses_the_running_statistics_as_torch_does(kind: type[nn.Module]) -> None:
    ours, theirs, x = _norm(GlobalBatchNorm), _norm(kind), noise(*SHAPES[kind])
    for norm in (ours, theirs):
        norm(2 * x + 1)
        norm.eval()
    assert_close(ours(x), theirs(x), rtol=1e-12)


def test_a_large_mean_does_not_cancel_in_float32() -> None:
    x = noise(4096, 5) + 1e4  # squares need 1e8 + 1: the variance would be lost in float32's 24 bits
    y = GlobalBatchNorm(5)(x.float())
    assert y.var(dim=0, unbiased=False).sub(1).abs().max() < 1e-2


@pytest.mark.parametrize("shape", SHAPES.values())
def test_blocks_equal_calls_in_a_row(shape: tuple[int, ...]) -> None:
    x, dy = noise(*shape), noise(*shape, seed=3)
    blocks, apart = _norm(GlobalBatchNorm, blocks=2), _norm(GlobalBatchNorm)
    found = _pass(blocks, x, dy)
    first, second = (_pass(apart, half, grad) for half, grad in zip(x.chunk(2), dy.chunk(2), strict=True))
    for name in ("y", "dx"):
        assert_close(found[name], torch.cat([first[name], second[name]]), rtol=1e-12)
    for name in ("weight", "bias", "running_mean", "running_var"):  # gradients accumulate, statistics move twice
        assert_close(found[name], second[name], rtol=1e-12)


def test_rows_that_do_not_divide_into_blocks_are_an_error() -> None:
    with pytest.raises(ValueError, match="7 rows do not divide into 2 blocks"):
        GlobalBatchNorm(5, blocks=2)(torch.zeros(7, 5))


@pytest.mark.parametrize(("shape", "blocks"), [((1, 5), 1), ((2, 5, 1, 1), 2)])
def test_a_block_of_a_single_value_is_an_error(shape: tuple[int, ...], blocks: int) -> None:
    norm = GlobalBatchNorm(5, blocks=blocks)
    with pytest.raises(ValueError, match="1 value per channel"):
        norm(torch.zeros(shape))
    assert norm.running_var.equal(torch.ones(5))


def _one_row(rank: int, x: Tensor) -> dict[str, Tensor]:
    return _pass(_norm(GlobalBatchNorm), x[rank : rank + 1], x[rank : rank + 1])


def test_one_row_on_each_of_two_workers_is_enough(pair: Workers) -> None:
    x = noise(2, 5)
    expected = _pass(_norm(GlobalBatchNorm), x, x)
    for found in pair.run(_one_row, x):
        assert_close(found["running_var"], expected["running_var"], rtol=1e-12)


def _shard(rank: int, x: Tensor, dy: Tensor, cut: int, blocks: int) -> dict[str, Tensor]:
    mine = [(block[cut:] if rank else block[:cut]) for block in x.chunk(blocks)]
    grads = [(block[cut:] if rank else block[:cut]) for block in dy.chunk(blocks)]
    return _pass(_norm(GlobalBatchNorm, blocks=blocks), torch.cat(mine), torch.cat(grads))


@pytest.mark.parametrize(("blocks", "cut"), [(1, 6), (1, 2), (2, 3), (2, 1)])
@pytest.mark.parametrize("shape", SHAPES.values())
def test_two_workers_equal_one(pair: Workers, shape: tuple[int, ...], blocks: int, cut: int) -> None:
    x, dy = noise(*shape) + 2, noise(*shape, seed=3)
    whole = _pass(_norm(GlobalBatchNorm, blocks=blocks), x, dy)
    first, second = pair.run(_shard, x, dy, cut, blocks)
    for name in ("y", "dx"):
        halves = zip(first[name].chunk(blocks), second[name].chunk(blocks), strict=True)
        assert_close(torch.cat([half for pieces in halves for half in pieces]), whole[name], rtol=1e-12)
    for name in ("weight", "bias"):  # each worker has its own rows' part
        assert_close(first[name] + second[name], whole[name], rtol=1e-12)
    for name in ("running_mean", "running_var"):
        assert_close(first[name], whole[name], rtol=1e-12)
        assert first[name].equal(second[name])


def test_every_batchnorm_inside_is_replaced_with_its_state() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=0.2))
    network = nn.Sequential(inner, nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6)).double()
    images = noise(8, 3, 2, 2)
    network(images)  # moves the running statistics
    before = network.eval()(images)
    replaced = use_global_batchnorm(network, blocks=2)
    norms = [module for module in replaced.modules() if isinstance(module, GlobalBatchNorm)]
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in replaced.modules())
    assert [(norm.eps, norm.momentum, norm.blocks) for norm in norms] == [(1e-3, 0.2, 2), (1e-5, 0.1, 2)]
    assert_close(replaced.eval()(images), before, rtol=1e-12)


@pytest.mark.parametrize("setting", [{"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_a_batchnorm_without_a_global_equal_is_an_error(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"BatchNorm1d\(4, .* cannot be computed over all workers"):
        use_global_batchnorm(nn.Sequential(nn.BatchNorm1d(4, **setting)))


def test_what_a_subclass_applies_behind_the_norm_is_kept() -> None:
    """timm's BatchNorm holds the activation behind it; torch's own is the reference here."""
    layers = pytest.importorskip("timm.layers")
    network = nn.Sequential(nn.Conv2d(3, 4, 1), layers.BatchNormAct2d(4))
    x = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = network.train()(x)
    found = use_global_batchnorm(network)(x)
    torch.testing.assert_close(found, expected)
    assert bool((found >= 0).all())


def test_another_subclass_is_refused() -> None:
    class Mine(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match="Mine cannot be computed over all workers"):
        use_global_batchnorm(nn.Sequential(Mine(4)))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("shape", SHAPES.values())
def test_torchs_own_kernels_give_the_same(shape: tuple[int, ...], blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, dy = 3 * noise(*shape) + 7, noise(*shape, seed=3)
    expected = _pass(_norm(GlobalBatchNorm, blocks), x, dy)
    norm = _norm(GlobalBatchNorm, blocks)
    monkeypatch.setattr(norm, "forward", norm._by_torch)  # what a single GPU takes
    for name, value in _pass(norm, x, dy).items():
        assert_close(value, expected[name], rtol=1e-12)


def test_rows_that_lie_apart_in_memory_are_normalised_all_the_same() -> None:
    x, dy = noise(24, 5, 4, 3)[::2].transpose(2, 3), noise(12, 5, 3, 4, seed=3)
    expected = _pass(_norm(GlobalBatchNorm, 2), x.contiguous(), dy)
    for name, value in _pass(_norm(GlobalBatchNorm, 2), x, dy).items():
        assert_close(value, expected[name], rtol=1e-12)


@pytest.mark.parametrize("blocks", [1, 2])
def test_channels_last_stay_last_with_the_same_numbers(blocks: int) -> None:
    x, dy = noise(12, 5, 3, 4) + 2, noise(12, 5, 3, 4, seed=3)
    expected = _pass(_norm(GlobalBatchNorm, blocks), x, dy)
    found = _pass(_norm(GlobalBatchNorm, blocks), x.contiguous(memory_format=torch.channels_last), dy)
    assert found["y"].is_contiguous(memory_format=torch.channels_last)
    for name, value in found.items():
        assert_close(value, expected[name], rtol=1e-12)
