"""The order of the images: a function of its numbers, cut into shares of any number of workers."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from pipeline.collectives import RowRange
from pipeline.data.order import Order, Window, number_copies, usual_number
from pipeline.data.sampling import sampling_weights

GROUPS = (40, 40, 17, 40, 40, 26, 40, 40, 17, 40, 40, 26, 40, 40, 14)  # 500 images in three shards
COUNT = sum(GROUPS)
ORDER = Order(COUNT, batch_size=24, seed=3, window=240, row_groups=GROUPS)
COVERED = Order(COUNT, batch_size=24, seed=3, window=COUNT, row_groups=GROUPS)
ODD = Order(COUNT, batch_size=23, seed=3, window=175, row_groups=GROUPS)  # lanes of five and six rows a step


def shares(order: Order, workers: int) -> list[RowRange]:
    """The lanes of each worker."""
    lanes = order.lanes
    return [RowRange(lanes * r // workers, lanes * (r + 1) // workers, lanes) for r in range(workers)]


def lane_steps(order: Order, epoch: int, lane: int, first_step: int = 0) -> list[Tensor]:
    """Images that a lane gives to each step from the first on."""
    rows = order.lane_rows(lane)
    taken = [order.draw(epoch, window)[start:stop] for _, window, start, stop in order.taken(epoch, lane, first_step)]
    return list(torch.cat(taken).split(rows)) if taken else []


def batches(order: Order, epoch: int, workers: int = 1) -> list[Tensor]:
    """The global batches of an epoch, put together from the shares of the workers."""
    steps: list[list[Tensor]] = [[] for _ in range(order.steps)]
    for lanes in shares(order, workers):
        for lane in range(*lanes[:2]):
            for step, images in enumerate(lane_steps(order, epoch, lane)):
                steps[step].append(images)
    return [torch.cat(parts) for parts in steps]


@pytest.mark.parametrize("order", [ORDER, COVERED, ODD])
def test_an_epoch_has_whole_batches_of_different_images(order: Order) -> None:
    found = batches(order, 0)
    assert [len(batch) for batch in found] == [order.batch_size] * (COUNT // order.batch_size)
    assert len(torch.cat(found).unique()) == order.batch_size * order.steps


@pytest.mark.parametrize("order", [ORDER, COVERED, ODD])
def test_epochs_differ_and_repeat(order: Order) -> None:
    first, again, other = (torch.cat(batches(order, epoch)) for epoch in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize("order", [ORDER, COVERED, ODD])
def test_the_remainder_differs_from_epoch_to_epoch(order: Order) -> None:
    left = Counter[int]()
    for epoch in range(40):
        left.update(set(range(COUNT)) - set(torch.cat(batches(order, epoch)).tolist()))
    assert len(left) > COUNT / 2  # 40 epochs leave 20 images over each
    assert max(left.values()) < 12


@pytest.mark.parametrize("order", [ORDER, COVERED, ODD])
def test_shares_are_contiguous_and_hold_what_their_lanes_take(order: Order) -> None:
    for workers in range(1, order.lanes + 1):
        end = row = 0
        for lanes in shares(order, workers):
            own, rows = order.images_of(lanes), order.batch_rows(lanes)
            assert (own.start, rows.start) == (end, row)
            end, row = own.stop, rows.stop
            for lane in range(*lanes[:2]):
                taken = torch.cat(lane_steps(order, 2, lane))
                assert own.start <= int(taken.min())
                assert int(taken.max()) < own.stop
        assert (end, row) == (COUNT, order.batch_size)


def test_shares_differ_by_a_lane_at_most() -> None:
    for order in (ORDER, COVERED, ODD):
        most = max(order.lane_rows(lane) for lane in range(order.lanes))
        for workers in range(1, order.lanes + 1):
            rows = [len(range(*order.batch_rows(lanes)[:2])) for lanes in shares(order, workers)]
            assert min(rows) > 0
            assert max(rows) - min(rows) <= most + 1


@pytest.mark.parametrize("order", [ORDER, COVERED, ODD])
def test_a_resume_at_a_step_takes_what_is_left(order: Order) -> None:
    for lane in range(order.lanes):
        whole = lane_steps(order, 1, lane)
        for step in range(order.steps + 1):
            rest = lane_steps(order, 1, lane, step)
            assert torch.cat([*whole[:step], *rest]).equal(torch.cat(whole))


def test_a_window_holds_whole_row_groups_but_for_the_ends_of_its_lane() -> None:
    edges = {0, *torch.tensor(GROUPS).cumsum(0).tolist()}
    cut = []
    for lane in range(ORDER.lanes):
        own = ORDER.images_of(RowRange(lane, lane + 1, ORDER.lanes))
        inner = [edge for window in ORDER.windows(0, lane) for part in window.segments for edge in part]
        cut.append(len({edge for edge in inner if edge not in edges | {own.start, own.stop}}))
    assert max(cut) == 1  # where the first window ends


def test_windows_of_a_lane_hold_its_images_once_each_epoch() -> None:
    for order in (ORDER, COVERED, ODD):
        for lane in range(order.lanes):
            windows = order.windows(5, lane)
            own = order.images_of(RowRange(lane, lane + 1, order.lanes))
            assert torch.cat([window.images for window in windows]).sort().values.equal(torch.arange(*own[:2]))
            assert [window.first for window in windows] == [
                sum(len(before) for before in windows[:i]) for i in range(len(windows))
            ]


def test_lanes_come_to_new_windows_at_different_steps() -> None:
    order = Order(64_000, batch_size=64, seed=0, window=4096, row_groups=(64,) * 1000)
    ends = Counter[int]()
    for lane in range(order.lanes):
        ends.update(window.first // order.lane_rows(lane) for window in order.windows(0, lane)[1:])
    reading = [ends[step] for step in range(order.steps)]
    assert order.lanes == 32
    assert max(reading) <= 4  # of 32 lanes; on average one in two steps
    assert sum(reading) > order.lanes * 10


def test_all_held_images_stay_near_the_window() -> None:
    order = Order(64_000, batch_size=64, seed=0, window=4096, row_groups=(64,) * 1000)
    largest = [max(len(window) for window in order.windows(0, lane)) for lane in range(order.lanes)]
    assert sum(largest) <= 1.5 * order.window


def test_the_number_of_lanes_needs_a_row_group_in_each_window() -> None:
    assert ORDER.lanes == 240 // 40
    assert COVERED.lanes == 24 // 2
    assert Order(COUNT, 24, 0, 30, GROUPS).lanes == 1


def test_usual_numbers_of_workers_divide_the_lanes() -> None:
    assert [usual_number(most) for most in range(1, 18)] == [1, 2, 3, 4, 4, 6, 6, 8, 8, 8, 8, 12, 12, 12, 12, 16, 16]


def test_batches_of_a_source_sorted_by_class_are_mixed_from_first_to_last() -> None:
    """Were the rows not shuffled at ingest, every batch would still have all classes: lanes lie all over the set."""
    order = Order(8000, batch_size=40, seed=1, window=2000, row_groups=(50,) * 160)
    classes = torch.arange(8000) * 7 // 8000
    shares_of = torch.stack([torch.bincount(classes[batch], minlength=7) / 40.0 for batch in batches(order, 0)])
    independent = (1 / 7 * 6 / 7 / 40) ** 0.5  # deviation of a class's share where batches are drawn at random
    assert float(shares_of.std(dim=0).max()) < independent
    assert float(shares_of[-25:].std(dim=0).max()) < independent


def test_draws_by_weight_are_as_many_as_images_and_follow_the_weights() -> None:
    window = ORDER.windows(0, 1)[1]
    weights = torch.ones(len(window), dtype=torch.float64)
    weights[:3] = 5.0
    keys = ORDER.draw(0, window, weights)
    assert len(keys) == len(window)
    often = torch.bincount(torch.searchsorted(window.images, keys % COUNT), minlength=len(window))
    expected = weights * len(window) / weights.sum()
    assert ((often - expected).abs() < 1).all()
    assert len(keys.unique()) == len(keys)
    assert not keys.equal(ORDER.draw(1, window, weights))


def test_clusters_are_drawn_equally_often_nearly_where_lanes_are_fair_samples() -> None:
    """Every lane gives each batch the same number of rows, so that a lane with many rare images draws each less."""
    sizes = torch.tensor([900, 450, 200, 100, 50])
    labels = torch.arange(5).repeat_interleave(sizes)[torch.randperm(1700, generator=torch.Generator().manual_seed(0))]
    order = Order(1700, batch_size=128, seed=0, window=1700, row_groups=(1700,))
    weights = sampling_weights(labels, sizes, 1.0)
    drawn = torch.zeros(5)
    for epoch in range(20):
        for lane in range(order.lanes):
            for window in order.windows(epoch, lane):
                keys = order.draw(epoch, window, weights[window.images])
                drawn += torch.bincount(labels[keys % 1700], minlength=5)
    assert float(drawn.sum()) == 20 * 1700
    assert torch.allclose(drawn / drawn.sum(), torch.full((5,), 0.2), atol=0.035)


def test_equal_weights_draw_each_image_once() -> None:
    window = ORDER.windows(0, 0)[0]
    keys = ORDER.draw(0, window, torch.full((len(window),), 0.5, dtype=torch.float64))
    assert keys.sort().values.equal(window.images)


def test_copies_are_numbered() -> None:
    assert number_copies(torch.tensor([4, 2, 4, 4, 2, 7]), 100).tolist() == [4, 2, 104, 204, 102, 7]


def test_images_of_a_window_ascend() -> None:
    assert Window(0, ((7, 9), (2, 5))).images.tolist() == [2, 3, 4, 7, 8]
