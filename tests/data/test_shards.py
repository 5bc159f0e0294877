"""The manifest and the validation of shards: every kind of damage is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import shards
from pipeline.data.footers import row_group_rows
from pipeline.data.ingest import ingest
from pipeline.data.shards import LABELS, Manifest, Shard, read_manifest, validate_shards
from pipeline.errors import DataError
from pipeline.storage import filesystem
from tests.helpers.old_shards import write_old_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The digits in shards of 600, 600 and 597 rows."""
    ingest("digits", str(tmp_path / "digits"), rows_per_shard=600)
    return tmp_path / "digits"


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Write a shard anew, with row groups as long as before."""
    table, groups = change(pq.read_table(path)), row_group_rows(pq.ParquetFile(path))
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        for start, rows in zip(np.cumsum([0, *groups]), groups, strict=False):
            writer.write_table(table.slice(start, rows))


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_sound_shards_pass_as_path_and_as_uri(folder: Path) -> None:
    manifest = validate_shards(str(folder))
    assert [(s.first_index, s.rows) for s in manifest.shards] == [(0, 600), (600, 600), (1200, 597)]
    assert validate_shards(folder.as_uri()) == manifest


def test_manifest_round_trip_is_exact_and_leaves_no_temporary(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(str(folder))
    (tmp_path / "copy").mkdir()
    manifest.write(str(tmp_path / "copy"))
    assert read_manifest(str(tmp_path / "copy")) == manifest
    assert [p.name for p in (tmp_path / "copy").iterdir()] == ["manifest.json"]


def test_a_failed_write_keeps_the_old_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_manifest(str(folder))
    local = filesystem(str(folder))[0]

    class FullDisk:
        def delete_file(self, path: str) -> None:
            Path(path).unlink()

        def open_output_stream(self, path: str, compression: None) -> object:
            Path(path).write_bytes(b"{")
            raise OSError("No space left on device")

    monkeypatch.setattr(shards, "filesystem", lambda path: (FullDisk(), path))
    with pytest.raises(OSError, match="No space"):
        before.model_copy(update={"num_images": 1}).write(str(folder))
    monkeypatch.setattr(shards, "filesystem", lambda path: (local, path))
    assert read_manifest(str(folder)) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [("{not json", "damaged"), ("[]", "damaged"), ('{"schema_version": 99}', "schema version 99"),
     ('{"schema_version": 1, "num_images": 3}', "damaged")],
)  # fmt: skip
def test_bad_manifests_are_named(folder: Path, content: str, message: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=f"(?s)manifest.json .*{message}.*ingest the source again"):
        read_manifest(str(folder))


def test_missing_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fill it with `digpro ingest SOURCE"):
        read_manifest(str(tmp_path))
    (tmp_path / "_ingest").mkdir()
    with pytest.raises(DataError, match="unfinished ingest"):
        read_manifest(str(tmp_path))


def test_a_folder_of_images_says_how_to_ingest_it(tmp_path: Path) -> None:
    images = tmp_path / "my images"
    images.mkdir()
    (images / "x.png").write_bytes(b"")
    command = f"run `digpro ingest '{images}' '{images}-shards'`, then set data.path='{images}-shards'"
    with pytest.raises(DataError, match=re.escape(f"images must be ingested before they are used: {command}")):
        read_manifest(f"{images}/")
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"x.parquet is a file, .* ingest \S+/x.parquet \S+/x-shards`"):
        read_manifest(str(tmp_path / "x.parquet"))


def test_truncated_shard_is_named(folder: Path) -> None:
    shard = folder / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"shard-00001.parquet: unreadable"):
        validate_shards(str(folder))


def test_missing_shard_is_named(folder: Path) -> None:
    (folder / "shard-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"shard-00002.parquet: the shard is missing"):
        validate_shards(str(folder))


def test_missing_and_mistyped_columns_are_named(folder: Path) -> None:
    shard = folder / "shard-00000.parquet"
    rewrite(shard, lambda t: t.set_column(1, "label", t["label"].cast(pa.int32())))
    with pytest.raises(DataError, match="column 'label' is int32, not int64"):
        validate_shards(str(folder))
    rewrite(shard, lambda t: t.drop_columns("label"))
    with pytest.raises(DataError, match=r"shard-00000.parquet: column 'label' is missing"):
        validate_shards(str(folder))


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(("row", "value"), [(7, 3), (7, 5000), (0, 601), (599, None), (300, 1200)])
def test_wrong_index_is_named(folder: Path, row: int, value: int | None, statistics: bool) -> None:
    values: list[int | None] = list(range(600, 1200))
    values[row] = value
    shard = folder / "shard-00001.parquet"
    rewrite(shard, lambda t: t.set_column(2, "index", pa.array(values)), write_statistics=statistics)
    with pytest.raises(DataError, match=f"row {row} has index {value}, not {600 + row};"):
        validate_shards(str(folder))


def test_the_index_is_read_only_where_statistics_do_not_show_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, **options: Any) -> pa.Table:
        read.append(group)
        return original(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    validate_shards(str(folder))
    assert read == []
    old = write_old_shards(tmp_path / "old", [0, 1, 2, 3])  # row groups of 3 and 1
    rewrite(old / "shard-00000.parquet", lambda t: t, write_statistics=False)
    with pytest.raises(DataError, match="bytes but the manifest says"):
        validate_shards(str(old))
    assert read == [0, 1]


def test_other_row_groups_are_named(folder: Path) -> None:
    shard = folder / "shard-00000.parquet"
    table = pq.read_table(shard)
    pq.write_table(table, shard, row_group_size=300)
    with pytest.raises(DataError, match=r"shard-00000.parquet: has 2 row groups but the manifest says 3; delete"):
        validate_shards(str(folder))
    pq.write_table(table, shard, row_group_size=220)
    with pytest.raises(DataError, match=r"has 220 rows in row group 0 but the manifest says 200"):
        validate_shards(str(folder))


def test_row_groups_that_do_not_sum_to_the_rows_are_damage(folder: Path) -> None:
    shards = read_manifest(str(folder)).model_dump()["shards"]
    shards[1]["groups"] = [200, 200, 199]
    edit_manifest(folder, shards=shards)
    message = "(?s)manifest.json is damaged .*shard-00001.parquet has 600 rows, but its row groups have 599"
    with pytest.raises(DataError, match=message):
        read_manifest(str(folder))
    with pytest.raises(ValueError, match="has 3 rows"):
        Shard(file="x", rows=3, bytes=1, first_index=0, groups=(3, 0))


def test_a_shard_is_a_line_of_the_manifest(folder: Path) -> None:
    lines = [line.strip(" ,") for line in (folder / "manifest.json").read_text().splitlines() if "shard-" in line]
    assert [Shard.model_validate_json(line) for line in lines] == read_manifest(str(folder)).shards


def test_data_sets_of_earlier_versions_are_sound(tmp_path: Path) -> None:
    old = write_old_shards(tmp_path / "old", [0, 1, 2, 3, -1, 5])
    manifest = validate_shards(str(old))
    assert [(shard.rows, shard.groups) for shard in manifest.shards] == [(4, ()), (2, ())]
    assert manifest.labelled is None


def test_a_bad_file_of_labels_is_named(folder: Path) -> None:
    path = folder / LABELS
    remedy = "delete the folder and ingest the source again"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DataError, match=f"{LABELS} has 1796 rows but the manifest says 1797; {remedy}"):
        validate_shards(str(folder))
    pq.write_table(pa.table({"class": range(1797)}), path)
    with pytest.raises(DataError, match=f"{LABELS} has the columns .'class'., not .'label'.; {remedy}"):
        validate_shards(str(folder))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{LABELS} cannot be read: .*; {remedy}"):
        validate_shards(str(folder))
    path.unlink()
    with pytest.raises(DataError, match=f"{LABELS} cannot be read: .*No such file.*; {remedy}"):
        validate_shards(str(folder))


def test_lost_rows_and_other_bytes_are_named(folder: Path) -> None:
    shard = folder / "shard-00001.parquet"
    rewrite(shard, lambda t: t)
    with pytest.raises(DataError, match="bytes but the manifest says"):
        validate_shards(str(folder))
    rewrite(shard, lambda t: t.slice(0, 500))
    with pytest.raises(DataError, match="has 500 rows but the manifest says 600"):
        validate_shards(str(folder))


def test_a_manifest_that_contradicts_itself_is_named(folder: Path) -> None:
    edit_manifest(folder, num_images=1800)
    with pytest.raises(DataError, match="num_images is 1800 but the shards have 1797 rows together; delete"):
        validate_shards(str(folder))
    edit_manifest(folder, shards=read_manifest(str(folder)).model_dump()["shards"][1:])
    with pytest.raises(DataError, match="starts at index 600, not 0"):
        validate_shards(str(folder))
    edit_manifest(folder, num_images=0, shards=[])
    with pytest.raises(DataError, match="holds no images"):
        validate_shards(str(folder))


def test_common_size_is_none_when_sizes_differ(folder: Path) -> None:
    statistics = read_manifest(str(folder)).statistics
    assert statistics.common_size == (8, 8)
    assert statistics.model_copy(update={"max_width": 9}).common_size is None


def test_paths_become_absolute_and_bad_uris_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert filesystem("x/../y")[1] == str(tmp_path / "y")
    with pytest.raises(DataError, match="nosuch://x is not a usable filesystem URI"):
        filesystem("nosuch://x")
    with pytest.raises(DataError, match="empty"):
        filesystem("")


def test_unknown_manifest_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        Manifest.model_validate({"extra": 1})
