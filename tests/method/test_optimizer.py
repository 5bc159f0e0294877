"""The optimizer's groups: who is in which, what decays, and the rates of a step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD

from pipeline.method.digpro import DigPro, DigProSettings
from pipeline.method.encoder import build_head
from pipeline.method.optimizer import build_optimizer, set_learning_rates, step_if_finite


def _model() -> DigPro:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6))
    return DigPro(encoder, build_head(6, 8, 4), build_head(4, 8, 4), 4, DigProSettings(3))


def _names(model: DigPro, optimizer: SGD) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]


def _build(model: DigPro, **settings: bool) -> SGD:
    return build_optimizer(model, lr=0.5, momentum=0.9, weight_decay=1e-3, **settings)


def test_all_that_learns_is_in_one_group_and_the_target_in_none() -> None:
    model = _model()
    groups = _names(model, _build(model))
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sorted(name for group in groups for name in group) == sorted(expected)
    assert not any("target" in name for name in expected)


def test_by_default_every_tensor_decays_as_in_the_reference() -> None:
    model = _model()
    optimizer = _build(model)
    online, online_rest, predictor, predictor_rest = _names(model, optimizer)
    assert online_rest == predictor_rest == set()
    assert all(name.startswith("networks.online.") for name in online)
    assert all(name.startswith("predictor.") for name in predictor)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 0, 1e-3, 0]
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_biases_and_norms_can_be_left_out_of_the_decay() -> None:
    model = _model()
    optimizer = _build(model, decay_bias_and_norm=False)
    for group in optimizer.param_groups:
        assert group["params"]
        assert all((p.dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_the_predictor_has_a_rate_of_its_own() -> None:
    model = _model()
    optimizer = _build(model)
    set_learning_rates(optimizer, 0.1, 0.7)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.7, 0.7]


def test_a_restored_optimizer_steps_the_same() -> None:
    torch.manual_seed(0)
    model = _model()
    optimizer = _build(model, decay_bias_and_norm=False)

    def step(optimizer: SGD) -> None:
        for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = torch.full_like(parameter, 0.1 * number)
        set_learning_rates(optimizer, 0.1, 0.7)
        optimizer.step()

    step(optimizer)
    twin = _model()
    twin.load_state_dict(model.state_dict())
    restored = _build(twin, decay_bias_and_norm=False)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share the momenta
    for each in (optimizer, restored):
        step(each)
    assert all(a.equal(b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def _give_gradients(optimizer: SGD, value: float) -> list[nn.Parameter]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    parameters[-1].grad.view(-1)[-1] = value
    return parameters


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_step_that_is_not_finite_leaves_weights_and_momenta_alone(bad: float, steps_before: int) -> None:
    """Neither momentum nor weight decay moves a weight; and the steps after it are those of a run without it."""
    torch.manual_seed(0)
    model = _model()
    twin = copy.deepcopy(model)
    optimizer, expected = _build(model), _build(twin)
    for _ in range(steps_before):
        for each in (optimizer, expected):
            _give_gradients(each, 0.5)
            assert step_if_finite(each)
    _give_gradients(optimizer, bad)
    assert not step_if_finite(optimizer)
    assert all(a.equal(b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    for each in (optimizer, expected):
        _give_gradients(each, 0.25)
        assert step_if_finite(each)
    assert all(a.equal(b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_finite_step_is_that_of_plain_sgd() -> None:
    torch.manual_seed(0)
    model = _model()
    twin = copy.deepcopy(model)
    ours, theirs = _build(model), _build(twin)
    theirs.state.clear()  # torch makes the momenta in its first step
    for value in (0.25, -0.0, 1e-30):
        _give_gradients(ours, value)
        assert step_if_finite(ours)
        _give_gradients(theirs, value)
        theirs.step()
    assert all(a.equal(b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
