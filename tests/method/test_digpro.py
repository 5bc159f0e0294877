"""Whole steps of DigPro: the reference's five-step sequences, on one process and on two with DDP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import collectives
from pipeline.method.digpro import DigPro, DigProSettings, StepLosses
from pipeline.method.encoder import build_head
from pipeline.method.optimizer import build_optimizer, set_learning_rates
from tests.helpers.golden import assert_close, golden
from tests.helpers.workers import Workers

INPUTS = golden("full_inputs")
NAMES = {"encoder_q": "networks.online.encoder", "projector_q": "networks.online.projector"}
NAMES |= {"encoder_k": "networks.target.encoder", "projector_k": "networks.target.projector"}
REFERENCE = DigProSettings(
    num_clusters=7, reference_lead_momentum=0.99, reference_empty_logit=-10.0, reference_raw_groups=True
)


def _ours(name: str) -> str:
    """Our name of a tensor of the reference."""
    if name == "smog.group_features":
        return "groups.features"
    room, _, rest = name.partition(".")
    return f"{NAMES.get(room, room)}.{rest}"


def _tiny_model(settings: DigProSettings = REFERENCE, dtype: torch.dtype = torch.float64) -> DigPro:
    encoder = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    model = DigPro(encoder, build_head(10, 24, 8), build_head(8, 24, 8), 8, settings).to(dtype)
    state = {_ours(k[5:]): v for k, v in INPUTS.items() if k.startswith("init/") and "num_batches" not in k}
    missing = model.load_state_dict({k: v.to(dtype) for k, v in state.items()}, strict=False).missing_keys
    assert set(missing) == {"bank.rows", "bank.pushed"}
    return model


def _step_inputs(step: int, dtype: torch.dtype, rows: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
    views = (INPUTS[name][step, rows].to(dtype) for name in ("im_q", "im_k"))
    return (*views, INPUTS["psedo_labels"][INPUTS["indices"][step, rows]])


def _noise(step: int, warmup: bool, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor | None:
    return None if warmup else 0.001 * INPUTS["noise"][step][:, rows].to(dtype)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("phase", ["warmup", "after_warmup"])
def test_one_step_matches_the_reference(phase: str, dtype: torch.dtype, rtol: float) -> None:
    expected, warmup = golden(f"full_forward_{phase}"), phase == "warmup"
    model = _tiny_model(dtype=dtype)
    losses = model(*_step_inputs(0, dtype), noise=_noise(0, warmup, dtype), warmup=warmup, target_momentum=0.996)
    losses.total.backward()
    assert_close(losses.instance, expected["instance"], rtol)
    assert_close(losses.group, expected["group"], rtol)
    assert_close(losses.total, expected["total"], rtol)
    if not warmup:
        assert_close(losses.prototype, expected["cluster"], rtol)
    _check_gradients(model, {_ours(k[5:]): v for k, v in expected.items() if k.startswith("grad/")}, rtol)
    _check_state(model, {_ours(k[6:]): v for k, v in expected.items() if k.startswith("after/")}, rtol)
    assert_close(model.bank.gather(), expected["bank_rows"], rtol)


def _check_gradients(model: DigPro, expected: dict[str, Tensor], rtol: float) -> None:
    largest = max(float(v.abs().max()) for v in expected.values())
    parameters = dict(model.named_parameters())
    assert {n for n, p in parameters.items() if p.requires_grad} == set(expected)
    for name, gradient in expected.items():
        found = parameters[name].grad
        assert found is not None, name
        torch.testing.assert_close(found.double(), gradient, rtol=5 * rtol, atol=rtol * largest)


def _check_state(model: DigPro, expected: dict[str, Tensor], rtol: float) -> None:
    state = model.state_dict()
    for name, value in expected.items():
        if "num_batches" not in name:
            assert_close(state[name], value, rtol)


def _run_steps(case: str, dtype: torch.dtype, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Five optimizer steps of a golden case on this worker's block of rows; what it leaves behind."""
    expected, own = golden(f"full_steps_{case}"), collectives.row_range(24)
    rows = slice(own.start, own.stop)
    model = _tiny_model(dtype=dtype)
    optimizer = build_optimizer(model, lr=0.05, momentum=0.9, weight_decay=5e-4)
    step_model = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    history, groups = [], []
    for step in range(5):
        warmup = bool(expected["losses"][step, 4])
        set_learning_rates(optimizer, *expected["lr"][step].tolist())
        resets = case == "reset" and int(expected["n_iter"][step]) == 7
        losses: StepLosses = step_model(
            *_step_inputs(step, dtype, rows),
            noise=_noise(step, warmup, dtype, rows),
            warmup=warmup,
            target_momentum=0.996,
            group_centers=INPUTS["reset_centres"] if resets else None,
            rows=own,
        )
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(collectives.all_sum(torch.stack(losses).detach()) / world)
        groups.append(model.groups.features)
    with torch.no_grad():
        features = model.encode(INPUTS["probe_images"].to(dtype))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return {
        "losses": torch.stack(history),
        "groups": groups,
        "state": state,
        "bank": model.bank.gather(),
        "f": features,
    }


def _steps_on_a_worker(rank: int, case: str) -> dict[str, Any]:
    return _run_steps(case, torch.float64, rank, world=2)


def _check_steps(found: dict[str, Any], case: str, rtol: float) -> None:
    expected = golden(f"full_steps_{case}")
    columns = [list(expected["loss_columns"]).index(n) for n in ("instance", "cluster", "group", "total")]
    computed = torch.where(expected["losses"][:, 4:].bool(), torch.tensor([1.0, 0, 1, 1]), 1.0)
    assert_close(found["losses"] * computed, expected["losses"][:, columns] * computed, rtol)
    assert_close(torch.stack(found["groups"]), expected["group_after_pass"][:, 1], rtol)
    assert_close(found["bank"], expected["bank_rows"], rtol)
    assert_close(found["f"], expected["probe_features_normalised"], rtol)
    for name, value in expected.items():
        if name.startswith("final/") and "num_batches" not in name:
            assert_close(found["state"][_ours(name[6:])], value, rtol)


CASES = ["plain", "predx10", "warm", "reset", "sched"]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 5e-5)])
@pytest.mark.parametrize("case", CASES)
def test_five_steps_match_the_reference(case: str, dtype: torch.dtype, rtol: float) -> None:
    _check_steps(_run_steps(case, dtype), case, rtol)


@pytest.mark.parametrize("case", CASES)
def test_two_workers_match_the_reference(pair: Workers, case: str) -> None:
    for found in pair.run(_steps_on_a_worker, case):
        _check_steps(found, case, 1e-9)


def _gradients(
    rank: int, cut: int | None, num_groups: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients and state after one corrected step on rows before or after `cut` (all rows when None)."""
    start, stop = (0, 24) if cut is None else ((cut, 24) if rank else (0, cut))
    model = _tiny_model(DigProSettings(num_clusters=7, prototype_weight=1.0))
    if num_groups:
        generator = torch.Generator().manual_seed(1)
        model.groups.features = torch.randn(num_groups, 8, generator=generator, dtype=torch.float64)
    step_model = DistributedDataParallel(model, broadcast_buffers=False) if cut is not None else model
    inputs = _step_inputs(0, torch.float64, slice(start, stop))
    losses = step_model(*inputs, target_momentum=0.99, rows=collectives.RowRange(start, stop, 24))
    losses.total.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return gradients, {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("bank")}


@pytest.mark.parametrize(("cut", "num_groups"), [(12, None), (7, None), (7, 20)])
def test_gradients_of_unequal_shards_equal_one_worker(pair: Workers, cut: int, num_groups: int | None) -> None:
    gradients, state = _gradients(0, None, num_groups)
    largest = max(float(g.abs().max()) for g in gradients.values())
    for found_gradients, found_state in pair.run(_gradients, cut, num_groups):
        assert found_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-9, atol=1e-12 * largest)
        for name, value in state.items():
            assert_close(found_state[name], value, 1e-10)


def test_the_total_weighs_every_loss_by_its_name() -> None:
    weights = {"instance": 2.0, "prototype": 3.0, "group": 5.0}
    settings = DigProSettings(num_clusters=7, **{f"{name}_weight": weight for name, weight in weights.items()})
    assert settings.weights == weights
    assert StepLosses._fields == (*weights, "total")
    losses = _tiny_model(settings)(*_step_inputs(0, torch.float64), target_momentum=0.99)
    assert_close(losses.total, sum(weight * getattr(losses, name) for name, weight in weights.items()))


def test_groups_may_be_finer_than_clusters() -> None:
    model = DigPro(nn.Flatten(), build_head(12, 24, 8), build_head(8, 24, 8), 8, DigProSettings(7, num_groups=20))
    model.bank.push(torch.randn(48, 8), collectives.equal_rows(48))
    centers = model.bank_centers(seed=0)
    views = torch.randn(2, 24, 3, 2, 2)
    losses = model(*views, torch.arange(24) % 7, target_momentum=0.99, group_centers=centers)
    assert model.groups.features.shape == centers.shape == (20, 8)
    losses.total.backward()
    assert all(torch.isfinite(loss) for loss in losses)


def _bank_after(rank: int, batches: int, cut: int) -> tuple[Tensor, Tensor | None]:
    model = _tiny_model(DigProSettings(num_clusters=7, bank_size=40), torch.float32)
    generator = torch.Generator().manual_seed(0)
    start, stop = (0, 24) if collectives.world_size() == 1 else ((cut, 24) if rank else (0, cut))
    for _ in range(batches):
        model.bank.push(torch.randn(24, 8, generator=generator)[start:stop], collectives.RowRange(start, stop, 24))
    return model.bank.gather(), model.bank_centers(seed=5)


@pytest.mark.parametrize("batches", [1, 2, 7])
def test_the_bank_and_its_centres_do_not_depend_on_the_split(pair: Workers, batches: int) -> None:
    rows, centers = _bank_after(0, batches, 0)
    assert len(rows) == min(24 * batches, 40)
    for found_rows, found_centers in pair.run(_bank_after, batches, 7):
        assert found_rows.equal(rows)
        assert_close(found_centers, centers, 1e-6)


def test_an_almost_empty_bank_gives_no_centres() -> None:
    model = _tiny_model(DigProSettings(num_clusters=7))
    model.bank.push(torch.randn(6, 8), collectives.equal_rows(6))
    assert model.bank_centers(seed=0) is None


def test_encode_leaves_the_training_mode_and_statistics_alone() -> None:
    model = _tiny_model()
    before = model.networks.target.encoder[1].running_mean.clone()
    features = model.encode(INPUTS["probe_images"].double())
    assert model.networks.target.training
    assert model.networks.target.encoder[1].running_mean.equal(before)
    assert_close(features.norm(dim=1), torch.ones(16, dtype=torch.float64))
