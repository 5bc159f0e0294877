"""Momentum groups and the bank: assignment, update, reset and wrap-around; two workers equal one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.collectives import RowRange, equal_rows
from pipeline.method.groups import FeatureBank, MomentumGroups
from pipeline.method.losses import group_loss, unit
from tests.helpers.golden import assert_close, golden
from tests.helpers.workers import Workers

GROUP = golden("group_step")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _groups(start: Tensor, **settings: float) -> MomentumGroups:
    groups = MomentumGroups(*start.shape, **settings).to(start.dtype)
    groups.features = start
    return groups


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_steps_match_the_reference(dtype: torch.dtype, rtol: float) -> None:
    groups = _groups(GROUP["group0"].to(dtype), momentum=float(GROUP["beta"]), raw_updates=True)
    for step in range(3):
        q, p = (GROUP[name][step].detach().clone().to(dtype).requires_grad_() for name in ("q", "p"))
        assignment = groups.assign(GROUP["k"][step].to(dtype))
        assert assignment.equal(GROUP["assign_k"][step])
        assert groups.assign(q).equal(GROUP["assign_q"][step])
        moved = groups.update(q)
        loss = group_loss(p, moved, assignment, float(GROUP["temperature"]))
        loss.backward()
        assert_close(groups.features, GROUP["group_after"][step], rtol)
        assert_close(loss, GROUP["loss"][step], rtol)
        assert_close(p.grad, GROUP["grad_p"][step], 5 * rtol)
        assert_close(q.grad, GROUP["grad_q_through_groups"][step], 5 * rtol)


def test_assignment_is_by_direction_and_the_lowest_index_on_ties() -> None:
    groups = _groups(torch.tensor([[5.0, 0.0], [0.0, 0.1], [0.0, 9.0]]))
    assert groups.assign(torch.tensor([[0.1, 0.0], [1.0, 3.0], [-1.0, 2.0]])).tolist() == [0, 1, 1]


def test_an_update_moves_groups_to_the_mean_of_their_members_and_no_others() -> None:
    start = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    groups = _groups(start, momentum=0.9)
    moved = groups.update(torch.tensor([[2.0, 0.0], [4.0, 3.0]]))  # unit rows (1, 0) and (0.8, 0.6), both of group 0
    assert_close(moved[0], 0.9 * start[0] + 0.1 * torch.tensor([0.9, 0.3]), rtol=1e-6)
    assert moved[1].equal(start[1])
    assert groups.features.equal(moved)


def test_the_gradient_reaches_the_features_but_is_not_kept_in_the_groups() -> None:
    groups, features = _groups(noise(3, 4)), noise(6, 4, seed=1).requires_grad_()
    groups.update(features).sum().backward()
    assert features.grad.abs().sum() > 0
    assert not groups.features.requires_grad


def test_unit_updates_ignore_the_length_of_features() -> None:
    start, features = noise(4, 8), noise(16, 8, seed=1)
    assert_close(_groups(start).update(features), _groups(start).update(100 * features))
    raw = [_groups(start, raw_updates=True).update(scale * features) for scale in (1, 100)]
    assert not torch.allclose(raw[0], raw[1])


def _update(rank: int, cut: int | None) -> tuple[Tensor, Tensor]:
    """Groups after one update by the rows before or after `cut` (all when None), and the features' gradient."""
    rows = slice(None) if cut is None else (slice(cut, None) if rank else slice(0, cut))
    features = noise(20, 4, seed=1)[rows].requires_grad_()
    moved = _groups(noise(5, 4)).update(features)
    (moved * noise(5, 4, seed=2)).sum().backward()
    return moved.detach(), features.grad


@pytest.mark.parametrize("cut", [10, 3])
def test_two_workers_equal_one(pair: Workers, cut: int) -> None:
    groups, gradient = _update(0, None)
    answers = pair.run(_update, cut)
    for found, _ in answers:
        assert_close(found, groups)
    assert_close(torch.cat([part for _, part in answers]) / 2, gradient)  # DDP's average of two equal losses


def test_a_reset_puts_groups_on_the_sphere_and_checks_the_shape() -> None:
    groups, centers = _groups(noise(4, 8).float()), 3 * noise(4, 8, seed=1)
    groups.reset(centers)
    assert_close(groups.features, unit(centers), rtol=1e-6)
    assert groups.features.dtype == torch.float32
    with pytest.raises(ValueError, match=r"centers are \(3, 8\); the groups need \(4, 8\)"):
        groups.reset(centers[:3])


def test_the_bank_grows_and_then_keeps_the_newest_rows_in_order() -> None:
    bank, rows = FeatureBank(10, 2).double(), noise(16, 2)
    for batch in rows.split(4):
        bank.push(batch, equal_rows(4))
        seen = rows[: int(bank.pushed)]
        assert bank.gather().equal(seen[-10:])
    assert int(bank.pushed) == 16


@pytest.mark.parametrize("before", [0, 3])
def test_a_batch_larger_than_the_bank_leaves_its_end(before: int) -> None:
    bank, batch = FeatureBank(10, 2).double(), noise(24, 2)
    bank.push(noise(before, 2, seed=1), equal_rows(before))
    bank.push(batch, equal_rows(24))
    assert bank.gather().equal(batch[-10:])


def _banked(rank: int, cuts: list[int], size: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    bank, rows = FeatureBank(size, 3).double(), noise(4, 7, 3)
    for batch in rows:
        bank.push(batch[cuts[rank] : cuts[rank + 1]], RowRange(cuts[rank], cuts[rank + 1], 7))
    return bank.gather(), bank.state(), bank.rows


@pytest.mark.parametrize("size", [10, 5])  # 5: less than a batch
@pytest.mark.parametrize("cuts", [[0, 3, 7], [0, 1, 7], [0, 7, 7]])
def test_the_bank_does_not_depend_on_the_split(pair: Workers, cuts: list[int], size: int) -> None:
    rows, state, _ = _banked(0, [0, 7], size)
    answers = pair.run(_banked, cuts, size)
    for found, found_state, _ in answers:
        assert found.equal(rows)
        assert all(found_state[name].equal(value) for name, value in state.items())
    parts = torch.stack([part for _, _, part in answers])
    assert ((parts != 0).any(dim=2).sum(dim=0) == 1).all()  # each row lies on one worker


def test_what_the_bank_returns_does_not_change_with_the_next_push() -> None:
    bank, rows = FeatureBank(10, 2).double(), noise(20, 2)
    bank.push(rows[:8], equal_rows(8))
    gathered, state = bank.gather(), bank.state()
    copies = gathered.clone(), state["rows"].clone()
    bank.push(rows[8:], equal_rows(12))
    assert gathered.equal(copies[0])
    assert state["rows"].equal(copies[1])
    assert int(state["pushed"]) == 8


def test_a_saved_state_is_loaded_and_continued() -> None:
    bank, twin, rows = FeatureBank(10, 2).double(), FeatureBank(10, 2).double(), noise(21, 2)
    bank.push(rows[:14], equal_rows(14))
    twin.load_state_dict(bank.state())
    for each in (bank, twin):
        each.push(rows[14:], equal_rows(7))
    assert twin.gather().equal(bank.gather())
    assert twin.gather().equal(rows[-10:])
