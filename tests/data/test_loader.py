"""The resident feed, without Ray: the same global batches for every number of workers, and a resume is an index."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.data.loader import ResidentImages
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


def test_blocks_hold_every_image_once(pair: Workers) -> None:
    for parts in ([_blocks(0)], pair.run(_blocks)):
        index = torch.cat([block for part in parts for block in part])
        assert index.equal(torch.arange(COUNT))
        assert max(len(block) for part in parts for block in part) == 5
