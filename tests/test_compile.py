"""`optim.compile` and `optim.channels_last`: the same numbers, in one graph without breaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import explain

from pipeline.method.digpro import DigPro, DigProSettings
from pipeline.method.encoder import build_encoder, build_head, build_predictor
from tests.helpers.golden import assert_close
from tests.helpers.workers import Workers


def _model(encoder: str = "tiny") -> DigPro:
    torch.manual_seed(0)
    module, size = build_encoder(encoder, small_stem=True)
    return DigPro(module, build_head(size, 32, 16), build_predictor(16, 32), 16, DigProSettings(4))


def _images(count: int = 8) -> Tensor:
    return torch.randn(2, count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def _networks(model: DigPro) -> list[tuple[nn.Module, Tensor]]:
    images = _images().flatten(0, 1)
    return [(model.networks.online, images), (model.networks.target, images), (model.predictor, torch.randn(16, 16))]


def _graphs(rank: int, encoder: str) -> list[tuple[int, int]]:
    found = [explain(network)(x) for network, x in _networks(_model(encoder))]
    return [(each.graph_count, each.graph_break_count) for each in found]


@pytest.mark.parametrize("encoder", ["tiny", "resnet18"])
def test_each_network_is_one_graph(encoder: str) -> None:
    assert _graphs(0, encoder) == [(1, 0)] * 3


def test_so_it_is_on_two_workers_whose_statistics_are_exchanged_inside(pair: Workers) -> None:
    assert pair.run(_graphs, "tiny") == [[(1, 0)] * 3] * 2


def _step(model: DigPro) -> dict[str, Tensor]:
    losses = model(*_images(), torch.arange(8) % 4, target_momentum=0.9)
    losses.total.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"losses": torch.stack(losses).detach(), **gradients, **model.state_dict()}


def _compile(model: DigPro) -> None:
    model.compile_networks("aot_eager")  # the C++ that inductor writes takes minutes to compile


@pytest.mark.parametrize("change", [_compile, DigPro.use_channels_last])
def test_the_numbers_stay(change: Callable[[DigPro], None]) -> None:
    expected, model = _step(_model()), _model()
    change(model)
    found = _step(model)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert_close(found["losses"], expected["losses"], rtol=1e-5)
