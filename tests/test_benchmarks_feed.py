"""`benchmarks.feed` without Ray: its images, the ways that it compares, and how it reads a run's ledger."""

from __future__ import annotations

import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import feed
from benchmarks.feed import seconds_by_ledger
from benchmarks.jpegs import jpeg, write_jpegs
from benchmarks.pipeline import make_config
from benchmarks.plain_feeds import PlainLoop, Shards, batches, load_all, make_loader, share_of
from pipeline.data.decode import decode_table


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Two files of 5 images, in row groups of 3."""
    rng = np.random.default_rng(0)
    paths = []
    for first in (0, 5):
        rows = [{"image": {"bytes": jpeg(rng), "path": f"{i}.jpg"}, "index": i} for i in range(first, first + 5)]
        paths.append(tmp_path / f"{first}.parquet")
        pq.write_table(pa.Table.from_pylist(rows), paths[-1], row_group_size=3)
    return paths


def test_jpegs_are_as_large_as_photographs_and_the_same_again(tmp_path: Path) -> None:
    first, again = (write_jpegs(tmp_path / name, 12, seed=1) for name in ("first", "again"))
    rows, same = (pq.read_table(source.removeprefix("parquet:")).to_pylist() for source in (first, again))
    assert rows == same
    assert [row["label"] for row in rows] == [*range(10), 0, 1]
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    assert {image.format for image in images} == {"JPEG"}
    assert all(256 <= side <= 300 for image in images for side in image.size)
    assert 15_000 < np.mean([len(row["image"]["bytes"]) for row in rows]) < 60_000


def test_shares_are_all_rows_once() -> None:
    shares = [share_of(rank, 3, 10) for rank in range(3)]
    assert [list(share) for share in shares] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_a_share_is_decoded_as_its_rows_are(shards: list[Path]) -> None:
    decoding: dict[str, Any] = {"size": 32}
    found = list(batches(shards, range(2, 9), 2, decoding))
    assert [len(batch) for batch in found] == [1, 2, 2, 1, 1]  # row 2; 3, 4; 5, 6; 7; 8: row groups are cut
    table = pa.concat_tables([pq.read_table(path) for path in shards]).slice(2, 7)
    expected = decode_table(table, **decoding)["image"]
    assert np.concatenate([batch.numpy() for batch in found]).tolist() == expected.tolist()


@pytest.mark.slow
def test_the_plain_loop_and_the_loader_take_all_images_and_stay_alive(shards: list[Path]) -> None:
    decoding: dict[str, Any] = {"size": 32}
    plain = PlainLoop(shards, 10, 2, 4, decoding)
    loader = make_loader(Shards(shards, 10, 4, decoding), 2)
    for _ in range(2):
        plain()
        load_all(loader, 10)
    with pytest.raises(AssertionError):
        load_all(loader, 11)
    plain.close()


def test_the_feeds_seconds_are_those_of_epochs_without_esteps_and_checkpoints() -> None:
    entries = {f"seconds_{name}": 1.0 for name in ("estep", "evaluate", "monitor", "checkpoint")}
    history = [{"epoch": epoch, "seconds_epoch": seconds, **entries} for epoch, seconds in ((0, 99), (1, 12), (2, 8))]
    assert seconds_by_ledger(history, images=100, batch=30) == pytest.approx((8 + 4) / 2 * 100 / 90)


@pytest.mark.parametrize(
    ("seconds", "status"),
    [
        ({"feed": [10.0, 10.0], "plain": [8.5, 8.6], "loader": [10.0, 11.0]}, 0),
        ({"feed": [10.0, 10.0], "plain": [8.4, 8.4], "loader": [10.0, 11.0]}, 1),
        ({"feed": [10.0, 10.0], "plain": [9.0, 9.0], "loader": [9.8, 9.9]}, 1),
    ],
)
def test_the_status_is_that_of_both_claims(
    seconds: dict[str, list[float]], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "compare", lambda args, folder: seconds)
    monkeypatch.setattr("sys.argv", ["feed", "--images", "100"])
    assert feed.main() == status


def test_the_benchmark_of_training_takes_jpegs_at_their_size(tmp_path: Path) -> None:
    args = Namespace(data=None, images=64, encoder="resnet18", workers=1, batch=16)
    config, manifest = make_config(args, tmp_path, jpeg=224)
    assert (config.data.image_size, config.views.size, config.model.small_stem) == (224, 224, False)
    assert manifest.num_images == 64
    assert 256 <= manifest.statistics.min_width <= manifest.statistics.max_width <= 300
