"""Sampling by pseudo-label, without Ray: the weights, and a stream whose rows are kept as often as they say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pipeline.data.sampling import MOST_DRAWS, balanced_batches, sampling_weights
from pipeline.keyed_random import Stream, uniform

SIZES = [400, 200, 100, 50, 0, 30]
LABELS = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
TOTAL = len(LABELS)
OF_ALL = torch.randperm(TOTAL, generator=torch.Generator().manual_seed(1))
SHUFFLED = LABELS[OF_ALL]  # as ingest shuffles a source


def weights_of(labels: Tensor, balance: float) -> Tensor:
    """The weights of a worker that has all images."""
    return sampling_weights(labels, torch.bincount(labels), balance)


def mass(weights: Tensor, labels: Tensor = SHUFFLED) -> Tensor:
    """Draws of each cluster."""
    return torch.bincount(labels, weights, minlength=len(SIZES))


def test_weights_fall_with_the_size_of_the_cluster() -> None:
    weights = weights_of(SHUFFLED, 0.5)
    sizes = torch.tensor(SIZES).double()[SHUFFLED]
    assert torch.allclose(weights / weights[0], (sizes / sizes[0]) ** -0.5)
    assert float(weights.sum()) == pytest.approx(TOTAL)


def test_at_one_every_cluster_that_has_images_is_drawn_equally_often() -> None:
    drawn = mass(weights_of(SHUFFLED, 1.0))
    expected = torch.full((6,), TOTAL / 5, dtype=torch.float64)
    expected[4] = 0
    assert torch.allclose(drawn, expected)


def test_at_zero_every_image_is_drawn_once() -> None:
    assert weights_of(SHUFFLED, 0.0).equal(torch.ones(TOTAL, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [[1000, 1], [10_000, 1, 1, 2, 30, 400], [5000] + [1] * 50, [7]])
def test_an_outlier_is_not_drawn_over_and_over(sizes: list[int]) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    weights = weights_of(labels, 1.0)
    assert float(weights.max()) <= MOST_DRAWS
    assert float(weights.sum()) == pytest.approx(len(labels))
    free = weights < MOST_DRAWS
    totals = mass(weights, labels)[labels[free].unique()]
    assert torch.allclose(totals, totals[0])


def test_a_worker_weighs_its_images_by_the_clusters_of_all_workers() -> None:
    parts = SHUFFLED.int().split([7, 0, TOTAL - 7])
    found = [sampling_weights(part, torch.tensor(SIZES), 0.7) for part in parts]
    assert torch.cat(found).equal(weights_of(SHUFFLED, 0.7))


def blocks(order: Tensor, size: int = 10) -> Iterator[tuple[Tensor, Tensor]]:
    """A stream of images whose pixels are their index."""
    for index in order.split(size):
        yield index.float()[:, None].expand(-1, 3), index


def batches(order: Tensor, weights: Tensor, *, steps: int, epoch: int = 0, buffer: int = 64) -> list[Tensor]:
    """Keys of the batches; every input is that of its key, and the stream has been read to its end."""
    stream = blocks(order)
    found = list(balanced_batches(stream, weights, seed=3, epoch=epoch, size=10, steps=steps, buffer=buffer))
    assert next(stream, None) is None
    for inputs, keys in found:
        assert inputs[:, 0].long().equal(keys % TOTAL)
    return [keys for _, keys in found]


@pytest.mark.parametrize("steps", [1, TOTAL // 10, 2 * TOTAL // 10])
@pytest.mark.parametrize("buffer", [0, 64, 10_000])
def test_there_are_as_many_whole_batches_as_asked_for(steps: int, buffer: int) -> None:
    found = batches(torch.arange(TOTAL), weights_of(SHUFFLED, 1.0), steps=steps, buffer=buffer)
    assert [len(keys) for keys in found] == [10] * steps


def test_equal_weights_keep_every_image_once() -> None:
    keys = torch.cat(batches(torch.arange(TOTAL), torch.ones(TOTAL, dtype=torch.float64), steps=TOTAL // 10))
    assert keys.sort().values.equal(torch.arange(TOTAL))
    assert not keys.equal(torch.arange(TOTAL))


def test_clusters_come_as_often_as_their_weights_say() -> None:
    weights = weights_of(SHUFFLED, 1.0)
    epochs = [torch.cat(batches(torch.arange(TOTAL), weights, steps=TOTAL // 10, epoch=e)) for e in range(20)]
    drawn = torch.bincount(SHUFFLED[torch.cat(epochs) % TOTAL], minlength=6) / 20
    assert torch.allclose(drawn.double(), mass(weights), rtol=0.05)
    assert not epochs[0].equal(epochs[1])


def test_copies_have_random_numbers_of_their_own() -> None:
    """Also those that fill up the last batches, with twice as many steps as the stream has rows for."""
    keys = torch.cat(batches(torch.arange(TOTAL), weights_of(SHUFFLED, 1.0), steps=2 * TOTAL // 10))
    assert len(keys.unique()) == len(keys)
    assert len((keys % TOTAL).unique()) < len(keys)


def test_copies_depend_on_the_image_and_not_on_its_place_in_the_stream() -> None:
    weights = weights_of(SHUFFLED, 1.0)
    numbers = uniform(3, 0, torch.arange(TOTAL), Stream.COPIES, 1)[:, 0]
    copies = (weights + numbers).long()
    for order in (torch.arange(TOTAL), OF_ALL):
        keys = torch.cat(batches(order, weights, steps=int(copies.sum()) // 10, buffer=TOTAL))
        assert (keys // TOTAL < copies[keys % TOTAL]).all()


def test_copies_of_an_image_do_not_stay_together() -> None:
    keys = torch.cat(batches(torch.arange(TOTAL), weights_of(SHUFFLED, 1.0), steps=TOTAL // 10, buffer=200))
    images = keys % TOTAL
    assert (images[1:] == images[:-1]).float().mean() < 0.05


def test_the_same_epoch_comes_again() -> None:
    weights = weights_of(SHUFFLED, 0.7)
    first, again = (batches(OF_ALL, weights, steps=60, epoch=5) for _ in range(2))
    assert all(one.equal(other) for one, other in zip(first, again, strict=True))


def test_a_worker_whose_rows_are_all_left_out_still_has_batches() -> None:
    weights = torch.zeros(TOTAL, dtype=torch.float64)
    assert [len(keys) for keys in batches(torch.arange(TOTAL), weights, steps=3)] == [10] * 3


def test_a_stream_without_images_is_told_of_and_not_waited_for() -> None:
    empty: list[tuple[Tensor, Tensor]] = []
    with pytest.raises(RuntimeError, match=r"no image of epoch 3 has reached a worker; lower resources\.workers"):
        list(balanced_batches(empty, torch.ones(5), seed=0, epoch=2, size=2, steps=1, buffer=4))


@pytest.mark.parametrize("labels", [SHUFFLED, torch.sort(SHUFFLED).values, torch.sort(SHUFFLED).values.flip(0)])
def test_every_worker_reads_in_step_whatever_its_rows_are(labels: Tensor) -> None:
    """A buffer and then a part for each batch, also of a worker with rows of small or of large clusters alone.

    A worker that read ahead, while the others wait for it in a collective, could wait for rows that Ray Data does not
    read as long as theirs lie unread.
    """
    read = 0

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal read
        for inputs, index in blocks(torch.arange(TOTAL)):
            read += len(index)
            yield inputs, index

    stream = balanced_batches(
        counted(), weights_of(labels, 1.0), seed=0, epoch=0, size=10, steps=TOTAL // 10, buffer=100
    )
    assert [read for _ in stream] == [min(100 + 10 * step, TOTAL) for step in range(TOTAL // 10)]
