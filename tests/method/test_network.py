"""The online network and its momentum twin: what the update moves and what no gradient reaches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.method.encoder import build_head
from pipeline.method.network import OnlineTarget
from tests.helpers.golden import assert_close


def _networks() -> OnlineTarget:
    """Networks that have parted: other weights and other BatchNorm statistics on each side."""
    torch.manual_seed(0)
    networks = OnlineTarget(nn.Sequential(nn.Flatten(), nn.Linear(12, 6)), build_head(6, 8, 4))
    with torch.no_grad():
        for parameter in networks.online.parameters():
            parameter.add_(torch.randn_like(parameter))
    networks.online(torch.randn(8, 3, 2, 2))
    return networks


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_they_start_equal() -> None:
    networks = OnlineTarget(nn.Sequential(nn.Flatten(), nn.Linear(12, 6)), build_head(6, 8, 4))
    online, target = networks.online.state_dict(), networks.target.state_dict()
    assert online.keys() == target.keys()
    assert all(target[name].equal(value) for name, value in online.items())
    shared = {p.data_ptr() for p in networks.online.parameters()} & {p.data_ptr() for p in networks.target.parameters()}
    assert not shared


def test_the_update_moves_weights_and_leaves_batchnorm_s_statistics() -> None:
    networks = _networks()
    online, before = _state(networks.online), _state(networks.target)
    weights = dict(networks.target.named_parameters())
    places = {name: weight.data_ptr() for name, weight in weights.items()}
    networks.ema_update(0.9)
    for name, value in networks.target.state_dict().items():
        if name in weights:
            assert_close(value, 0.9 * before[name] + 0.1 * online[name], rtol=1e-6)
        else:
            assert not before[name].equal(online[name])  # else this test could not fail
            assert value.equal(before[name])
    assert {name: weight.data_ptr() for name, weight in weights.items()} == places  # in place
    assert all(value.equal(online[name]) for name, value in networks.online.state_dict().items())


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_0_copies_and_1_keeps(momentum: float) -> None:
    networks = _networks()
    expected = [p.clone() for p in (networks.target if momentum else networks.online).parameters()]
    networks.ema_update(momentum)
    assert all(p.equal(e) for p, e in zip(networks.target.parameters(), expected, strict=True))


@pytest.mark.parametrize("momentum", [-0.1, 1.5])
def test_another_momentum_is_an_error(momentum: float) -> None:
    with pytest.raises(ValueError, match=str(momentum)):
        _networks().ema_update(momentum)


def test_the_target_gets_no_gradient() -> None:
    networks, images = _networks(), torch.randn(8, 3, 2, 2)
    (networks.online(images) * networks.target(images)).sum().backward()
    assert all(p.grad is not None for p in networks.online.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in networks.target.parameters())


def test_two_stacked_views_are_normalised_each_by_its_own_statistics() -> None:
    networks, twin, views = (
        _networks(),
        _networks(),
        torch.randn(2, 8, 3, 2, 2) * torch.tensor([1.0, 9]).view(2, 1, 1, 1, 1),
    )
    together = networks.online(views.flatten(0, 1))
    for module in twin.online.modules():
        if hasattr(module, "blocks"):
            module.blocks = 1
    apart = torch.cat([twin.online(view) for view in views])
    assert_close(together, apart, rtol=1e-5)
