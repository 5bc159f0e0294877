"""A worker's images without Ray: what it reads and when, and the share that it keeps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.collectives import RowRange
from pipeline.data.read import with_row_groups
from pipeline.data.reader import SWEEP, Piece
from pipeline.data.shards import read_manifest
from pipeline.data.streaming import Readers, ReadPipeline
from pipeline.errors import DataError
from pipeline.plan import image_bytes
from pipeline.training.images import fetch_images, schedule, share_readers
from pipeline.training.job import Job
from tests.helpers.small_run import digits, small_job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "digits"
    digits(folder)
    return folder


def job(folder: Path, *overrides: str) -> Job:
    """Four epochs of all digits in streaming mode, of which one is the warm-up."""
    manifest = with_row_groups(str(folder), read_manifest(str(folder)))
    made = small_job(manifest, f"data.path={folder}", "data.mode=streaming", "data.shuffle_window=800", *overrides)
    return replace(made, reading_cpus=1.0)


def epochs_of(pieces: list[Piece]) -> list[int]:
    """The epochs of consecutive pieces, sweeps among them."""
    found: list[int] = []
    for piece in pieces:
        if not found or found[-1] != piece.epoch:
            found.append(piece.epoch)
    return found


def test_a_run_reads_windows_of_epochs_and_sweeps_in_turn(folder: Path) -> None:
    made = job(folder)
    lanes = RowRange(0, made.plan.order.lanes, made.plan.order.lanes)
    assert epochs_of(list(schedule(made, lanes, None))) == [SWEEP, 0, SWEEP, 1, SWEEP, 2, SWEEP, 3, SWEEP]
    assert epochs_of(list(schedule(job(folder, "estep.every=2"), lanes, (1, 3)))) == [1, SWEEP, 2, 3, SWEEP]


def test_a_resume_reads_what_is_left_of_its_epoch(folder: Path) -> None:
    made = job(folder)
    order, lanes = made.plan.order, RowRange(0, made.plan.order.lanes, made.plan.order.lanes)
    left = [piece for piece in schedule(made, lanes, (3, 20)) if piece.epoch == 3]
    assert sum(piece.stop - piece.start for piece in left) == (order.steps - 20) * order.batch_size


def test_windows_are_read_whole_where_draws_follow_from_labels_to_come(folder: Path) -> None:
    made = job(folder, "optim.balance=1")
    order, lanes = made.plan.order, RowRange(0, made.plan.order.lanes, made.plan.order.lanes)
    rows = Counter[int]()
    for piece in schedule(made, lanes, None):
        rows[piece.epoch] += piece.stop - piece.start
    assert rows[0] == order.steps * order.batch_size  # in the warm-up each image is taken once
    assert rows[1] == rows[2] == order.num_images


def test_only_the_first_batch_is_read_where_computing_is_measured(folder: Path) -> None:
    made = job(folder, "profile.only=compute")
    lanes = RowRange(0, made.plan.order.lanes, made.plan.order.lanes)
    windows = Counter(piece.epoch for piece in schedule(made, lanes, None) if piece.epoch != SWEEP)
    assert set(windows.values()) <= set(range(lanes.total, 2 * lanes.total))


def fetch(made: Job, own: RowRange) -> torch.Tensor:
    """Images that are few enough for a worker to read them itself."""
    reader = (made.plan.order, made.config.data.path, made.manifest, made.config.data.decoding)
    return fetch_images(made, ReadPipeline(reader, Readers((), 0.0), image_bytes(made.config)), own)


def test_a_share_is_kept_as_it_lies_in_the_shards(folder: Path) -> None:
    whole = fetch(job(folder), RowRange(0, 1797, 1797))
    part = fetch(job(folder), RowRange(250, 600, 1797))
    assert whole.shape == (1797, 16, 16, 3)
    assert whole.dtype == torch.uint8
    assert part.equal(whole[250:600])


def test_a_damaged_shard_is_named(folder: Path) -> None:
    made = job(folder)
    shard = next(folder.glob("shard-*.parquet"))
    intact = shard.read_bytes()
    shard.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(DataError, match=f"{shard.name} cannot be read"):
        fetch(made, RowRange(0, 100, 1797))
    shard.write_bytes(intact)


def test_readers_run_beside_their_worker_as_far_as_there_is_room() -> None:
    """A node with GPUs often has few CPUs, and nodes without GPUs read for it."""
    assert share_readers({"a": 3, "b": 5}, ["a", "b"]) == [("a", "a", "a", "b"), ("b", "b", "b", "b")]
    assert share_readers({"gpus": 0, "cpus": 5}, ["gpus", "gpus"]) == [("cpus", "cpus")] * 2
    assert share_readers({"gpus": 2, "x": 3, "y": 1}, ["gpus"] * 2) == [("gpus", "x", "x"), ("gpus", "x", "y")]


def test_a_worker_has_a_reader_even_if_no_cpu_is_free() -> None:
    assert share_readers({"a": 1, "b": 0}, ["a", "b"]) == [("a",), ("b",)]
    assert share_readers({}, ["lost"]) == [("lost",)]
