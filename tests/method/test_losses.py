"""The losses against the reference's numbers, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.method import losses
from pipeline.method.batchnorm import use_global_batchnorm
from pipeline.method.encoder import build_predictor
from pipeline.method.losses import group_loss, instance_loss, prototype_loss
from tests.helpers.golden import assert_close, golden
from tests.helpers.workers import Workers

INSTANCE, PROTOTYPE = golden("instance_loss"), golden("prototype_loss")
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-5)]


def _leaf(x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    return x.detach().clone().to(dtype).requires_grad_()


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize("case", ["std0", "std1e-3", "std0.3"])
def test_instance_loss_through_the_predictor(case: str, dtype: torch.dtype, rtol: float) -> None:
    predictor = use_global_batchnorm(build_predictor(8, 14)).to(dtype)
    predictor.load_state_dict({k[2:]: v for k, v in INSTANCE.items() if k.startswith("w/")}, strict=False)
    q = _leaf(INSTANCE["q"], dtype)
    p = predictor(q + INSTANCE[f"{case}/latent_std"].to(dtype) * INSTANCE["noise"].to(dtype))
    p.retain_grad()
    loss = instance_loss(p, INSTANCE["k"].to(dtype))
    loss.backward()
    assert_close(loss, INSTANCE[f"{case}/loss"], rtol)
    assert_close(p.grad, INSTANCE[f"{case}/grad_p"], rtol)
    assert_close(q.grad, INSTANCE[f"{case}/grad_q"], 3 * rtol)
    for name, parameter in predictor.named_parameters():
        if name != "0.bias":  # before a BatchNorm: exactly zero, both sides hold rounding only
            assert_close(parameter.grad, INSTANCE[f"{case}/grad_w/{name}"], 3 * rtol)
    assert_close(predictor[1].running_mean, INSTANCE[f"{case}/bn_running_mean"], rtol)
    assert_close(predictor[1].running_var, INSTANCE[f"{case}/bn_running_var"], rtol)


def _prototype(case: str, q: Tensor, **settings: float) -> Tensor:
    k, labels = PROTOTYPE[f"{case}/k"].to(q.dtype), PROTOTYPE[f"{case}/labels"]
    return prototype_loss(q, k, labels, 6, float(PROTOTYPE["temperature"]), **settings)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize("case", ["all_present", "some_empty", "one_present", "soft"])
def test_prototype_loss_with_the_reference_mask(case: str, dtype: torch.dtype, rtol: float) -> None:
    q = _leaf(PROTOTYPE[f"{case}/q"], dtype)
    loss = _prototype(case, q, empty_logit=-10.0)
    loss.backward()
    small = 1e-6 if dtype is torch.float32 else 0  # one_present: a loss of 3.7e-5 is the difference of two near 2
    torch.testing.assert_close(loss.detach().double(), PROTOTYPE[f"{case}/loss"], rtol=rtol, atol=small)
    torch.testing.assert_close(q.grad.double(), PROTOTYPE[f"{case}/grad_q"], rtol=rtol, atol=max(small, 1e-12))


def test_empty_prototypes_leave_the_loss_by_default() -> None:
    q = _leaf(PROTOTYPE["one_present/q"])
    loss = _prototype("one_present", q)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)  # a single cluster has nothing to move away from
    assert torch.isfinite(q.grad).all()


def test_default_mask_equals_the_loss_without_the_empty_clusters() -> None:
    q, k, labels = (PROTOTYPE[f"some_empty/{name}"] for name in ("q", "k", "labels"))
    packed = torch.unique(labels, return_inverse=True)[1]
    without = prototype_loss(q, k, packed, int(packed.max()) + 1)
    assert_close(prototype_loss(q, k, labels, 6), without)


def test_absent_clusters_are_taken_out_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss and its gradient are those of the masked logits."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(40, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, 100, (40,), generator=generator)
    answers = []
    for many in (losses.MANY_CLUSTERS, 10):
        monkeypatch.setattr(losses, "MANY_CLUSTERS", many)
        online = q.clone().requires_grad_()
        loss = prototype_loss(online, k, labels, 100)
        loss.backward()
        answers.append((loss.detach(), online.grad))
    for found, expected in zip(answers[1], answers[0], strict=True):
        assert_close(found, expected)


def _prototype_half(rank: int, q: Tensor, k: Tensor, labels: Tensor, cut: int) -> tuple[Tensor, Tensor]:
    rows = slice(cut, None) if rank else slice(0, cut)
    mine = _leaf(q[rows])
    loss = prototype_loss(mine, k[rows], labels[rows], 6)
    loss.backward()
    return loss.detach(), mine.grad


@pytest.mark.parametrize("cut", [20, 7])
def test_two_workers_equal_one_with_an_empty_cluster(pair: Workers, cut: int) -> None:
    q, k, labels = (PROTOTYPE[f"some_empty/{name}"] for name in ("q", "k", "labels"))
    whole = _leaf(q)
    loss = prototype_loss(whole, k, labels, 6)
    loss.backward()
    answers = pair.run(_prototype_half, q, k, labels, cut)
    for half_loss, _ in answers:
        assert_close(half_loss, loss.detach())
    assert_close(torch.cat([gradient for _, gradient in answers]) / 2, whole.grad)  # DDP's average


def test_losses_are_at_their_best_for_equal_features() -> None:
    x = torch.randn(5, 7)
    assert instance_loss(x, 2 * x).item() == pytest.approx(-2, abs=1e-6)
    same = nn.functional.one_hot(torch.arange(5), 7).float()
    assert group_loss(same, same, torch.arange(5), 0.01).item() == pytest.approx(0, abs=1e-6)
