"""The resident feed, without Ray: the same global batches for every number of workers, and a resume is an index."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.data.loader import ResidentImages, epoch_order, repeat_keys
from pipeline.data.sampling import sampling_weights
from tests.helpers.workers import Workers

COUNT, BATCH = 23, 6


def feed() -> ResidentImages:
    """Images whose pixels are their index."""
    images = torch.arange(COUNT, dtype=torch.uint8)[:, None, None, None].expand(COUNT, 4, 4, 3).contiguous()
    return ResidentImages(images, seed=3, batch_size=BATCH, block_size=5)


def _epoch(rank: int, epoch: int, first_step: int = 0) -> list[Tensor]:
    batches = list(feed().epoch(epoch, first_step))
    for batch in batches:
        assert batch.inputs[:, 0, 0, 0].long().equal(batch.index)
        assert batch.rows.total == BATCH
    return [batch.index for batch in batches]


LABELS = torch.tensor([0] * 14 + [1] * 6 + [3] * 3)  # and an empty cluster
WEIGHTS = sampling_weights(LABELS, torch.bincount(LABELS), 1.0)


def _drawn(rank: int, epoch: int, first_step: int = 0) -> list[Tensor]:
    """Keys of the batches of an epoch in which small clusters are drawn more often."""
    batches = list(feed().epoch(epoch, first_step, WEIGHTS))
    for batch in batches:
        assert batch.inputs[:, 0, 0, 0].long().equal(batch.index)
        assert batch.index.equal(batch.keys % COUNT)
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
    whole, rest = _epoch(0, 2), _epoch(0, 2, first_step=1)
    assert len(rest) == len(whole) - 1
    assert all(mine.equal(theirs) for mine, theirs in zip(rest, whole[1:], strict=True))


def test_workers_share_the_global_batches_of_one(pair: Workers) -> None:
    expected = _epoch(0, 1)
    shares = pair.run(_epoch, 1)
    for step, batch in enumerate(expected):
        assert torch.cat([share[step] for share in shares]).equal(batch)


def test_the_order_is_that_of_the_first_runs() -> None:
    """Runs without balance must go on as they began."""
    index = torch.cat(_epoch(0, epoch=1))
    assert index.equal(torch.randperm(COUNT, generator=torch.Generator().manual_seed(3_000_010))[: len(index)])
    assert all(batch.keys.equal(batch.index) for batch in feed().epoch(1))


def test_an_image_is_drawn_as_often_as_its_weight_says_rounded_up_or_down() -> None:
    for epoch in range(20):
        counts = torch.bincount(epoch_order(COUNT, 3, epoch, WEIGHTS), minlength=COUNT)
        assert int(counts.sum()) == COUNT
        assert bool(((counts >= WEIGHTS.floor()) & (counts <= WEIGHTS.ceil())).all())


def test_equal_weights_are_a_permutation() -> None:
    order = epoch_order(COUNT, 3, 0, torch.ones(COUNT, dtype=torch.float64))
    assert order.sort().values.equal(torch.arange(COUNT))


def test_every_cluster_is_drawn_equally_often() -> None:
    drawn = torch.cat([epoch_order(COUNT, 3, epoch, WEIGHTS) for epoch in range(300)])
    counts = torch.bincount(LABELS[drawn], minlength=4) / 300
    assert torch.allclose(counts, COUNT / 3 * torch.tensor([1.0, 1.0, 0.0, 1.0]), atol=0.3)


def test_repeats_of_an_image_have_keys_of_their_own() -> None:
    assert repeat_keys(torch.tensor([2, 0, 2, 1, 2, 0]), 3).tolist() == [2, 0, 5, 1, 8, 3]
    permutation = epoch_order(COUNT, 3, 0)
    assert repeat_keys(permutation, COUNT).equal(permutation)


def test_a_balanced_epoch_resumes_repeats_and_differs_from_others() -> None:
    whole, again, rest, other = _drawn(0, 2), _drawn(0, 2), _drawn(0, 2, first_step=1), _drawn(0, 3)
    assert len(whole) == COUNT // BATCH
    assert torch.cat(whole).equal(torch.cat(again))
    assert torch.cat(whole[1:]).equal(torch.cat(rest))
    assert not torch.cat(whole).equal(torch.cat(other))


def test_workers_share_the_balanced_batches_of_one(pair: Workers) -> None:
    expected, shares = _drawn(0, 1), pair.run(_drawn, 1)
    for step, batch in enumerate(expected):
        assert torch.cat([share[step] for share in shares]).equal(batch)


def test_blocks_hold_every_image_once(pair: Workers) -> None:
    for parts in ([_blocks(0)], pair.run(_blocks)):
        index = torch.cat([block for part in parts for block in part])
        assert index.equal(torch.arange(COUNT))
        assert max(len(block) for part in parts for block in part) == 5
