"""The manifest and the validation of shards: every kind of damage is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import shards
from pipeline.data.ingest import ingest
from pipeline.data.shards import Manifest, read_manifest, validate_shards
from pipeline.errors import DataError
from pipeline.storage import filesystem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The digits in shards of 600, 600 and 597 rows."""
    ingest("digits", str(tmp_path / "digits"), rows_per_shard=600)
    return tmp_path / "digits"


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


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
        def open_output_stream(self, path: str) -> object:
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
    with pytest.raises(DataError, match=r"x.parquet is a file .* ingest \S+/x.parquet \S+/x-shards`"):
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


def test_wrong_index_is_named(folder: Path) -> None:
    values = list(range(600, 1200))
    values[7] = 3
    rewrite(folder / "shard-00001.parquet", lambda t: t.set_column(2, "index", pa.array(values)))
    with pytest.raises(DataError, match="row 7 has index 3, not 607"):
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
    with pytest.raises(DataError, match="num_images is 1800 but the shards sum to 1797"):
        validate_shards(str(folder))
    edit_manifest(folder, shards=read_manifest(str(folder)).model_dump()["shards"][1:])
    with pytest.raises(DataError, match="starts at index 600, not 0"):
        validate_shards(str(folder))
    edit_manifest(folder, num_images=0, shards=[])
    with pytest.raises(DataError, match="zero images"):
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
