"""Parquet sources: columns, classes, damage, and rows that survive any cut."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.ingest import ingest
from pipeline.errors import DataError
from tests.helpers.images import encoded, put
from tests.helpers.sources import CLASSES, left_out, quarantined, rows_of, write_parquet

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.mark.parametrize("rows_per_shard", [1, 3, 7, 100])
def test_parquet_rows_survive_any_cut(tmp_path: Path, rows_per_shard: int) -> None:
    for part, start in enumerate((0, 10)):
        column = {"label": pa.array([i % 2 for i in range(start, start + 10)], pa.int8()), "index": [5] * 10}
        write_parquet(
            tmp_path / "p" / f"{part}.parquet", [encoded(i) for i in range(start, start + 10)], CLASSES, **column
        )
    manifest = ingest(str(tmp_path / "p"), str(tmp_path / "out"), rows_per_shard=rows_per_shard)
    rows = rows_of(tmp_path / "out")
    assert manifest.class_names == CLASSES
    assert len(manifest.shards) == -(-20 // rows_per_shard)
    found = {row["image"]["bytes"]: row["label"] for row in rows}
    assert len(rows) == 20
    assert found == {encoded(i): i % 2 for i in range(20)}


def test_plain_binary_parquet_takes_dataset_json(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([encoded(), encoded(1)], pa.binary()), "labels": [1, None]})
    pq.write_table(table, tmp_path / "one.parquet")
    (tmp_path / "dataset.json").write_text(json.dumps({"class_names": CLASSES}))
    manifest = ingest(f"parquet:{tmp_path}/one.parquet", str(tmp_path / "out"))
    assert manifest.class_names == CLASSES
    assert [row["label"] for row in rows_of(tmp_path / "out")] == [1, -1]


def test_shards_can_be_ingested_again(tree: Path, tmp_path: Path) -> None:
    ingest(str(tree), str(tmp_path / "a"))
    manifest = ingest(str(tmp_path / "a"), str(tmp_path / "b"))
    assert manifest.source.kind == "parquet"
    assert manifest.class_names == CLASSES
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


def test_parquet_columns_are_checked(tmp_path: Path) -> None:
    pq.write_table(pa.table({"img": [b"x"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'image' but \['img', 'label'\]; name the .* --image-column"):
        ingest(str(tmp_path / "a.parquet"), str(tmp_path / "out"))
    pq.write_table(pa.table({"image": [encoded()], "label": ["cat"]}), tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"column 'label' is string; labels must be integers; name another column with --label-column"
    ):
        ingest(str(tmp_path / "b.parquet"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_malformed_class_names_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "p" / "x.parquet"
    write_parquet(path, [encoded()])
    for text in ("{", "[]", '{"class_names": "cat"}'):
        (tmp_path / "p" / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=r"dataset.json is not a JSON object with a list `class_names`"):
            ingest(str(path), str(tmp_path / "out"))
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": "[1]"}), path)
    with pytest.raises(DataError, match=r"'huggingface' metadata is malformed"):
        ingest(str(path), str(tmp_path / "out"))
    write_parquet(path, [encoded()], CLASSES)
    write_parquet(tmp_path / "p" / "y.parquet", [encoded()], ["emu"])
    with pytest.raises(DataError, match=r"name different classes"):
        ingest(str(tmp_path / "p"), str(tmp_path / "out"))


def test_truncated_parquet_file_is_quarantined_and_the_others_kept(tmp_path: Path) -> None:
    for name in "abc":
        write_parquet(tmp_path / "p" / f"{name}.parquet", [encoded(i) for i in range(5)], label=[0] * 5)
    broken = tmp_path / "p" / "b.parquet"
    broken.write_bytes(broken.read_bytes()[:-50])
    manifest = ingest(str(tmp_path / "p"), str(tmp_path / "out"))
    assert manifest.num_images == 10 == len(rows_of(tmp_path / "out"))
    assert [entry.path for entry in manifest.quarantined] == ["b.parquet"]
    with pytest.raises(DataError, match=r"no readable image.*b.parquet: not a readable Parquet"):
        ingest(str(broken), str(tmp_path / "out2"))


def test_a_damaged_row_group_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_parquet(path, [encoded(i) for i in range(12)], label=[0] * 12)
    start = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    assert start
    raw = bytearray(path.read_bytes())
    raw[start : start + 40] = b"\xff" * 40  # the page header of rows 4 to 7
    path.write_bytes(raw)
    manifest = ingest(str(path), str(tmp_path / "out"))
    kept = [row["image"]["path"] for row in rows_of(tmp_path / "out")]
    assert kept == sorted(f"{i}.png" for i in (0, 1, 2, 3, 8, 9, 10, 11))
    assert manifest.quarantined_count == 4
    assert "rows 4 to 7 cannot be read" in manifest.quarantined[0].reason


@pytest.mark.parametrize(("name", "images", "classes", "size"), [("uc-merced", 2100, 21, 128)])
def test_real_parquet(name: str, images: int, classes: int, size: int, tmp_path: Path) -> None:
    source = Path(os.environ.get("DIGPRO_TEST_DATA", "data"), name)
    if not source.exists():
        pytest.skip(f"set DIGPRO_TEST_DATA to a folder that holds {name} as Parquet")
    manifest = ingest(str(source), str(tmp_path / "out"))
    described = json.loads((source / "dataset.json").read_text())
    assert (manifest.num_images, manifest.class_names) == (images, described["class_names"])
    assert manifest.statistics.common_size == (size, size)
    assert manifest.quarantined_count == 0
    counts = np.bincount([row["label"] for row in rows_of(tmp_path / "out")])
    assert counts.tolist() == [described["per_class"][name] for name in manifest.class_names]
    assert len(counts) == classes


def image_column(name: str, count: int = 2) -> dict[str, pa.Array]:
    structs = [{"bytes": encoded(i), "path": f"{name}{i}.png"} for i in range(count)]
    return {name: pa.array(structs, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}


def described(table: pa.Table, **features: dict[str, Any]) -> pa.Table:
    """The table with the metadata by which Hugging Face ``datasets`` knows its features."""
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def paths(folder: Path) -> list[tuple[str, int]]:
    return [(row["image"]["path"], row["label"]) for row in rows_of(folder)]


def test_the_image_column_may_have_any_name(tmp_path: Path) -> None:
    classes = {"_type": "ClassLabel", "names": CLASSES}
    table = pa.table({**image_column("img"), **image_column("mask"), "fine": [1, 0]})
    pq.write_table(described(table, img={"_type": "Image"}, fine=classes), tmp_path / "a.parquet")
    assert ingest(str(tmp_path / "a.parquet"), str(tmp_path / "a")).class_names == CLASSES
    assert paths(tmp_path / "a") == [("img0.png", 1), ("img1.png", 0)]
    pq.write_table(pa.table({**image_column("picture"), "url": ["a", "b"], "label": [0, 1]}), tmp_path / "b.parquet")
    ingest(str(tmp_path / "b.parquet"), str(tmp_path / "b"))
    assert paths(tmp_path / "b") == [("picture0.png", 0), ("picture1.png", 1)]


def test_columns_can_be_named(tmp_path: Path) -> None:
    table = pa.table({**image_column("img"), **image_column("mask"), "fine": [1, 0], "coarse": [0, 0]})
    pq.write_table(table, tmp_path / "x.parquet")
    source = str(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"several columns of images, \['img', 'mask'\]; .*--image-column"):
        ingest(source, str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"--image-column is 'imgs', but .* did you mean 'img'\?"):
        ingest(source, str(tmp_path / "out"), image_column="imgs")
    with pytest.raises(DataError, match=r"column 'fine' is int64; it must be binary"):
        ingest(source, str(tmp_path / "out"), image_column="fine")
    ingest(source, str(tmp_path / "out"), image_column="mask", label_column="fine")
    assert paths(tmp_path / "out") == [("mask0.png", 1), ("mask1.png", 0)]
    with pytest.raises(DataError, match="a different source or its content has changed"):
        ingest(source, str(tmp_path / "out"), image_column="img", label_column="fine")
    put(tmp_path / "f" / "x.png", encoded())
    with pytest.raises(DataError, match="read as imagefolder; --image-column and --label-column are for Parquet only"):
        ingest(str(tmp_path / "f"), str(tmp_path / "out2"), image_column="img")


def test_several_columns_of_classes_are_not_guessed(tmp_path: Path) -> None:
    classes = {"_type": "ClassLabel", "names": CLASSES}
    table = pa.table({**image_column("img"), "fine": [1, 0], "coarse": [0, 0]})
    pq.write_table(described(table, fine=classes, coarse=classes), tmp_path / "x.parquet")
    with pytest.raises(
        DataError, match=r"several columns of classes, \['fine', 'coarse'\]; name one with --label-column"
    ):
        ingest(str(tmp_path / "x.parquet"), str(tmp_path / "out"))
    ingest(str(tmp_path / "x.parquet"), str(tmp_path / "out"), label_column="coarse")
    assert paths(tmp_path / "out") == [("img0.png", 0), ("img1.png", 0)]


def test_other_files_and_links_of_a_parquet_folder_are_listed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p" / "x.parquet", [encoded()])
    put(tmp_path / "p" / "README.md", b"# Cats")
    put(tmp_path / "p" / ".cache" / "y.parquet", b"")
    (tmp_path / "p" / "gone.parquet").symlink_to("nowhere")
    manifest = ingest(str(tmp_path / "p"), str(tmp_path / "out"))
    assert set(left_out(tmp_path / "out")) == {"README.md", ".cache/y.parquet"}
    assert set(quarantined(tmp_path / "out")) == {"gone.parquet"}
    assert str(manifest.balance) == "4 rows seen = 1 images + 1 quarantined + 2 left out by rule"


def test_a_parquet_file_of_any_name_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p" / "x.parquet", [encoded()], label=[1])
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/p/\xff {a}.parquet")
    os.rename(tmp_path / "p" / "x.parquet", odd)
    assert ingest(str(tmp_path / "p"), str(tmp_path / "out")).num_images == 1
