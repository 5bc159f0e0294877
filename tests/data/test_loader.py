"""The feed of a worker, without Ray: the same global batches for every number of workers, and a resume is an index."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.data.loader import Inputs
from pipeline.data.order import Order
from pipeline.data.sampling import sampling_weights
from tests.helpers.small_run import resident_inputs
from tests.helpers.workers import Workers

COUNT, BATCH = 23, 6
IMAGES = torch.arange(COUNT, dtype=torch.uint8)[:, None, None, None].expand(COUNT, 4, 4, 3).contiguous()
LABELS = torch.tensor([0] * 14 + [1] * 6 + [3] * 3)  # and an empty cluster
WEIGHTS = sampling_weights(LABELS, torch.bincount(LABELS), 1.0)


def feed(window: int = COUNT) -> Inputs:
    """Images whose pixels are their index, in row groups of two."""
    order = Order(COUNT, BATCH, seed=3, window=window, row_groups=(2,) * 11 + (1,))
    return resident_inputs(IMAGES, order, block_size=5)


def _epoch(rank: int, epoch: int, first_step: int = 0, window: int = COUNT, balance: float = 0.0) -> list[Tensor]:
    """Keys of this worker's batches."""
    inputs = feed(window)
    weights = WEIGHTS[inputs.own.start : inputs.own.stop] if balance else None
    batches = list(inputs.epoch(epoch, first_step, weights))
    for batch in batches:
        assert batch.inputs[:, 0, 0, 0].long().equal(batch.index)
        assert batch.index.equal(batch.keys % COUNT)
        assert inputs.own.start <= int(batch.index.min())
        assert int(batch.index.max()) < inputs.own.stop
        assert batch.rows.total == BATCH
        assert batch.rows.stop - batch.rows.start == len(batch.index)
    return [batch.keys for batch in batches]


def _blocks(rank: int) -> list[Tensor]:
    return [index for images, index in feed().blocks() if images[:, 0, 0, 0].long().equal(index)]


def test_an_epoch_has_whole_batches_of_different_images() -> None:
    index = torch.cat(_epoch(0, epoch=0))
    assert len(index) == COUNT // BATCH * BATCH
    assert len(index.unique()) == len(index)


def test_epochs_differ_and_repeat() -> None:
    first, again, other = (torch.cat(_epoch(0, epoch)) for epoch in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


def test_a_resume_continues_the_order() -> None:
    for window in (COUNT, 9):
        for balance in (0.0, 1.0):
            whole, rest = _epoch(0, 2, 0, window, balance), _epoch(0, 2, 1, window, balance)
            assert len(rest) == len(whole) - 1
            assert all(mine.equal(theirs) for mine, theirs in zip(rest, whole[1:], strict=True))


def test_workers_share_the_global_batches_of_one(pair: Workers) -> None:
    for window in (COUNT, 9):
        for balance in (0.0, 1.0):
            expected = _epoch(0, 1, 0, window, balance)
            shares = pair.run(_epoch, 1, 0, window, balance)
            for step, batch in enumerate(expected):
                assert torch.cat([share[step] for share in shares]).equal(batch)


def test_repeats_of_an_image_have_keys_of_their_own() -> None:
    for epoch in range(20):
        keys = torch.cat(_epoch(0, epoch, balance=1.0))
        assert len(keys.unique()) == len(keys)


def test_a_balanced_epoch_repeats_and_differs_from_others() -> None:
    whole, again, other = (torch.cat(_epoch(0, epoch, balance=1.0)) for epoch in (2, 2, 3))
    assert whole.equal(again)
    assert not whole.equal(other)


def test_blocks_hold_every_image_once_in_order(pair: Workers) -> None:
    for parts in ([_blocks(0)], pair.run(_blocks)):
        index = torch.cat([block for part in parts for block in part])
        assert index.equal(torch.arange(COUNT))
        assert max(len(block) for part in parts for block in part) == 5
