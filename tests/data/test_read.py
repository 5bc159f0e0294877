"""Labels and samples read from shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.ingest import ingest
from pipeline.data.read import has_labels, read_chosen, read_labels, read_sample
from pipeline.data.shards import Manifest, read_manifest
from pipeline.errors import DataError
from tests.helpers.images import encoded, put


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in shards of 600, 600 and 597 rows; tests that change them take a copy."""
    path = tmp_path_factory.mktemp("read") / "digits"
    ingest("digits", str(path), rows_per_shard=600)
    return path


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return read_manifest(str(folder))


def whole(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("shard-*.parquet")))


def test_whether_there_are_labels_is_read_off_the_footers(folder: Path, tmp_path: Path) -> None:
    assert has_labels(str(folder))
    put(tmp_path / "images" / "a.png", encoded())  # a folder without classes
    ingest(str(tmp_path / "images"), str(tmp_path / "unlabelled"))
    assert not has_labels(str(tmp_path / "unlabelled"))
    assert read_labels(str(tmp_path / "unlabelled")) is None


def test_labels_come_by_index(folder: Path) -> None:
    from sklearn.datasets import load_digits

    labels = read_labels(str(folder))
    assert labels is not None
    assert labels.dtype == np.int64
    paths = [image["path"] for image in whole(folder)["image"].to_pylist()]
    numbers = [int(Path(path).stem) for path in paths]
    np.testing.assert_array_equal(labels, load_digits().target[numbers])
    np.testing.assert_array_equal(read_labels(folder.as_uri()), labels)
    np.testing.assert_array_equal(read_labels(str(folder), 590, 610), labels[590:610])


def test_labels_are_none_only_when_no_image_has_one(tmp_path: Path) -> None:
    put(tmp_path / "flat" / "0.png", encoded(0))
    ingest(str(tmp_path / "flat"), str(tmp_path / "a"))
    assert read_labels(str(tmp_path / "a")) is None
    put(tmp_path / "flat" / "cat" / "1.png", encoded(1))
    ingest(str(tmp_path / "flat"), str(tmp_path / "b"))
    labels = read_labels(str(tmp_path / "b"))
    assert labels is not None
    assert sorted(labels.tolist()) == [-1, 0]
    for image, label in enumerate(labels.tolist()):  # also one whose only image has none, as another has one
        assert read_labels(str(tmp_path / "b"), image, image + 1).tolist() == [label]


@pytest.mark.parametrize("count", [1, 64, 600, 601, 1797, 5000])
def test_a_sample_is_the_first_rows(folder: Path, manifest: Manifest, count: int) -> None:
    sample = read_sample(str(folder), manifest, count)
    assert sample.equals(whole(folder).select(["image", "index"]).slice(0, count))


def test_a_small_sample_shows_every_class(folder: Path, manifest: Manifest) -> None:
    labels = read_labels(str(folder))
    assert labels is not None
    shown = labels[read_sample(str(folder), manifest, 64)["index"].to_numpy()]
    assert set(shown.tolist()) == set(range(10))


def test_chosen_rows_come_in_order_of_index_from_the_shards_that_have_some(
    manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    first, last = manifest.shards[0].file, manifest.shards[2].file
    for file in (first, last):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    chosen = np.array([1796, 3, 599, 3, 1200])
    found = pa.concat_tables(read_chosen(str(tmp_path), manifest, chosen))
    assert found.equals(whole(folder).select(["image", "index"]).take([3, 599, 1200, 1796]))
    assert list(read_chosen(str(tmp_path), manifest, np.array([], np.int64))) == []


def test_a_sample_opens_no_shard_that_it_does_not_need(manifest: Manifest, folder: Path, tmp_path: Path) -> None:
    first = manifest.shards[0].file
    (tmp_path / first).write_bytes((folder / first).read_bytes())
    assert len(read_sample(str(tmp_path), manifest, 100)) == 100


def test_damage_is_named(manifest: Manifest, folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    second = tmp_path / manifest.shards[1].file
    second.write_bytes(second.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"shard-00001.parquet cannot be read: .*ingest the source again"):
        read_labels(str(tmp_path))
    with pytest.raises(DataError, match=r"shard-00001.parquet cannot be read"):
        read_sample(str(tmp_path), manifest, 700)
    second.unlink()
    with pytest.raises(DataError, match=r"shard-00001.parquet cannot be read"):
        read_labels(str(tmp_path))


def test_a_flipped_bit_in_an_image_is_an_error(manifest: Manifest, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / manifest.shards[0].file
    raw = bytearray((folder / manifest.shards[0].file).read_bytes())
    image = whole(folder)["image"][0].as_py()["bytes"]
    raw[raw.index(image) + len(image) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"shard-00000.parquet cannot be read: .*CRC"):
        read_sample(str(tmp_path), manifest, 10)
