"""Labels and samples read from shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import assemble
from pipeline.data import read as read_module
from pipeline.data.ingest import ingest
from pipeline.data.read import has_labels, read_chosen, read_labels, read_sample, with_row_groups
from pipeline.data.shards import LABELS, Manifest, read_manifest
from pipeline.errors import DataError
from tests.helpers.images import encoded, put
from tests.helpers.old_shards import as_earlier_version, write_old_shards


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


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def test_whether_there_are_labels_is_in_the_manifest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "images" / "a.png", encoded())  # a folder without classes
    ingest(str(tmp_path / "images"), str(tmp_path / "unlabelled"))
    assert not (tmp_path / "unlabelled" / LABELS).exists()
    monkeypatch.setattr(read_module, "_opened", None)
    assert has_labels(str(folder))
    assert not has_labels(str(tmp_path / "unlabelled"))
    assert read_labels(str(tmp_path / "unlabelled")) is None


def test_whether_old_shards_have_labels_is_read_off_the_footers(tmp_path: Path) -> None:
    assert has_labels(str(write_old_shards(tmp_path / "a", [-1, -1, -1, -1, -1, 0])))
    unlabelled = str(write_old_shards(tmp_path / "b", [-1] * 6))
    assert not has_labels(unlabelled)
    assert read_labels(unlabelled) is None
    assert read_labels(unlabelled, 2, 4) is None


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 600), (599, 601), (700, 700), (250, 1797), (1797, None)])
@pytest.mark.parametrize("version", ["now", "earlier"])
def test_a_range_of_labels(folder: Path, tmp_path: Path, start: int, stop: int | None, version: str) -> None:
    path = copy_of(folder, tmp_path / "copy")
    if version == "earlier":
        as_earlier_version(path)
    labels = read_labels(str(path), start, stop)
    assert labels is not None
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, whole(folder)["label"].to_numpy()[start:stop])


def test_a_range_outside_the_data_set_is_refused(folder: Path) -> None:
    for start, stop in ((-1, 5), (7, 6), (0, 1798)):
        with pytest.raises(ValueError, match=f"rows {start} to {stop - 1} of .*digits: it has rows 0 to 1796"):
            read_labels(str(folder), start, stop)


def test_a_range_of_unlabelled_rows_is_not_none_where_others_have_labels(tmp_path: Path) -> None:
    labels = read_labels(str(write_old_shards(tmp_path / "old", [-1, -1, -1, -1, 2, -1])), 0, 4)
    assert labels is not None
    assert labels.tolist() == [-1] * 4


def test_only_overlapping_row_groups_of_labels_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "LABEL_ROWS", 600)
    ingest("digits", str(tmp_path / "d"), rows_per_shard=300)  # two shards for each row group of labels
    metadata = pq.read_metadata(tmp_path / "d" / LABELS)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [600, 600, 597]
    for shard in (tmp_path / "d").glob("shard-*"):
        shard.unlink()
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, **options: Any) -> pa.Table:
        read.append(group)
        return original(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    labels = read_labels(str(tmp_path / "d"), 600, 700)
    assert labels is not None
    assert labels.shape == (100,)
    assert read == [1]


def test_only_overlapping_old_shards_are_read_for_labels(tmp_path: Path) -> None:
    old = write_old_shards(tmp_path / "old", list(range(12)))
    manifest = read_manifest(str(old)).model_copy(update={"labelled": None})
    tables = read_module._labels_of_shards(str(old), manifest, 5, 8)
    (old / "shard-00000.parquet").unlink()
    (old / "shard-00002.parquet").unlink()
    assert [table["label"].to_pylist() for table in tables] == [[5, 6], [7]]


def test_row_groups_of_the_manifest_are_those_of_the_files(folder: Path, manifest: Manifest) -> None:
    assert with_row_groups(str(folder), manifest) is manifest
    for shard in manifest.shards:
        metadata = pq.read_metadata(folder / shard.file)
        assert shard.groups == tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        assert max(shard.groups) <= 256


def test_row_groups_of_earlier_versions_are_read_from_the_footers(tmp_path: Path) -> None:
    old = write_old_shards(tmp_path / "old", list(range(10)))
    manifest = read_manifest(str(old))
    assert [shard.groups for shard in with_row_groups(str(old), manifest).shards] == [(3, 1), (3, 1), (2,)]
    first = (old / "shard-00000.parquet").read_bytes()
    (old / "shard-00002.parquet").write_bytes(first)
    with pytest.raises(DataError, match=r"shard-00002.parquet has 4 rows but the manifest says 2; delete the folder"):
        with_row_groups(str(old), manifest)
    (old / "shard-00001.parquet").write_bytes(first[:-9])
    with pytest.raises(DataError, match=r"shard-00001.parquet cannot be read"):
        with_row_groups(str(old), manifest)


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
    as_earlier_version(tmp_path)
    with pytest.raises(DataError, match=r"shard-00001.parquet cannot be read: .*ingest the source again"):
        read_labels(str(tmp_path))
    with pytest.raises(DataError, match=r"shard-00001.parquet cannot be read"):
        read_sample(str(tmp_path), manifest, 700)
    second.unlink()
    with pytest.raises(DataError, match=r"shard-00001.parquet cannot be read"):
        read_labels(str(tmp_path))


def test_damage_of_the_file_of_labels_is_named(folder: Path, tmp_path: Path) -> None:
    path = copy_of(folder, tmp_path / "copy") / LABELS
    whole_file = path.read_bytes()
    middle = bytearray(whole_file)
    middle[len(middle) // 4] ^= 1
    for content in (whole_file[:-30], bytes(middle)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{LABELS} cannot be read: .*delete the folder and ingest the source"):
            read_labels(str(path.parent), 5, 6)
    pq.write_table(pa.table({"label": range(1796)}), path)
    with pytest.raises(DataError, match=r"has 1796 rows but the manifest says 1797"):
        read_labels(str(path.parent), 5, 6)
    path.unlink()
    with pytest.raises(DataError, match=rf"{LABELS} cannot be read: .*No such file"):
        read_labels(str(path.parent), 5, 6)


def test_a_flipped_bit_in_an_image_is_an_error(manifest: Manifest, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / manifest.shards[0].file
    raw = bytearray((folder / manifest.shards[0].file).read_bytes())
    image = whole(folder)["image"][0].as_py()["bytes"]
    raw[raw.index(image) + len(image) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"shard-00000.parquet cannot be read: .*CRC"):
        read_sample(str(tmp_path), manifest, 10)
