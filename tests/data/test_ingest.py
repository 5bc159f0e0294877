"""Ingest: every source, every kind of bad input, kills, and Ray against one process."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from pipeline.data import assemble, verify
from pipeline.data import ingest as ingest_module
from pipeline.data.ingest import ingest
from pipeline.data.shards import validate_shards
from pipeline.data.sources import Part, Row, open_source
from pipeline.errors import DataError
from tests.helpers.images import encoded, put

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES = ["cat", "dog"]


def noisy_jpeg(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def shards_of(folder: Path) -> list[list[dict[str, Any]]]:
    """The rows of each shard; their folder is validated, and every image decoded, on the way."""
    manifest = validate_shards(str(folder))
    shards = [pq.read_table(folder / shard.file).to_pylist() for shard in manifest.shards]
    assert [row.pop("index") for rows in shards for row in rows] == list(range(manifest.num_images))
    for row in itertools.chain(*shards):
        Image.open(io.BytesIO(row["image"]["bytes"])).load()
    return shards


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows, by path: their order in the shards is a fixed random one."""
    return sorted(itertools.chain(*shards_of(folder)), key=lambda row: row["image"]["path"])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the summary, which holds the time that it took."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != "summary.json"}


def labels(folder: Path) -> list[tuple[str, int]]:
    return [(row["image"]["path"], row["label"]) for row in rows_of(folder)]


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `program` in a Python of its own, where it may kill itself or start Ray."""
    command = [sys.executable, "-c", program, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep ingest in this process even when another test has left Ray running in it."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An image folder of 12 PNGs in two classes."""
    for i in range(12):
        put(tmp_path / "tree" / CLASSES[i % 2] / f"{i:02d}.png", encoded(i))
    return tmp_path / "tree"


def write_parquet(path: Path, images: Sequence[bytes | None], names: list[str] | None = None, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(structs, kind), **columns})
    if names:
        features = {"label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=4)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


# --- sources -------------------------------------------------------------------------------------------------


def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    manifest = ingest("digits", str(tmp_path / "out"), rows_per_shard=1000)
    rows, digits = rows_of(tmp_path / "out"), load_digits()
    assert [shard.rows for shard in manifest.shards] == [1000, 797]
    assert manifest.class_names == list("0123456789")
    assert [row["label"] for row in rows] == digits.target.tolist()
    pixels = np.asarray(Image.open(io.BytesIO(rows[1234]["image"]["bytes"])))
    np.testing.assert_array_equal(pixels, np.round(digits.images[1234] * 255 / 16))
    np.testing.assert_allclose(manifest.statistics.mean, digits.images.mean() / 16, atol=1e-3)


def test_image_folder_takes_sorted_class_folders_and_nested_files(tree: Path, tmp_path: Path) -> None:
    put(tree / "cat" / "deep" / "er" / "x.jpg", encoded(9, "JPEG"))
    put(tree / "cat" / ".hidden.png", b"")
    put(tree / "notes.txt", b"not an image")
    manifest = ingest(str(tree), str(tmp_path / "out"))
    found = dict(labels(tmp_path / "out"))
    assert manifest.source.kind == "imagefolder"
    assert manifest.class_names == CLASSES
    assert manifest.num_images == 13
    assert manifest.quarantined_count == 0
    assert found["cat/deep/er/x.jpg"] == 0
    assert found["dog/01.png"] == 1


def test_flat_folder_is_unlabelled_and_keeps_duplicates(tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / "flat" / f"{i}.webp", encoded(1, "WEBP"))
    manifest = ingest(f"imagefolder:{tmp_path}/flat", str(tmp_path / "out"))
    assert labels(tmp_path / "out") == [("0.webp", -1), ("1.webp", -1), ("2.webp", -1)]
    assert manifest.class_names == []


def test_split_folders_are_one_data_set(tmp_path: Path) -> None:
    for name in ("train/dog/0.png", "train/cat/0.png", "val/dog/1.png", "test/emu/2.tiff", "test/loose.png"):
        put(tmp_path / "t" / name, encoded(kind="TIFF" if name.endswith("tiff") else "PNG"))
    manifest = ingest(str(tmp_path / "t"), str(tmp_path / "out"))
    assert manifest.class_names == ["cat", "dog", "emu"]
    expected = {
        "train/dog/0.png": 1,
        "train/cat/0.png": 0,
        "val/dog/1.png": 1,
        "test/emu/2.tiff": 2,
        "test/loose.png": -1,
    }
    assert dict(labels(tmp_path / "out")) == expected


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
    with pytest.raises(DataError, match=r"no column 'image', only \['img', 'label'\]"):
        ingest(str(tmp_path / "a.parquet"), str(tmp_path / "out"))
    pq.write_table(pa.table({"image": [encoded()], "label": ["cat"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"column 'label' is string; it must be an integer"):
        ingest(str(tmp_path / "b.parquet"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_malformed_class_names_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "p" / "x.parquet"
    write_parquet(path, [encoded()])
    for text in ("{", "[]", '{"class_names": "cat"}'):
        (tmp_path / "p" / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=r"dataset.json is no JSON object with a list `class_names`"):
            ingest(str(path), str(tmp_path / "out"))
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": "[1]"}), path)
    with pytest.raises(DataError, match=r"'huggingface' metadata is malformed"):
        ingest(str(path), str(tmp_path / "out"))
    write_parquet(path, [encoded()], CLASSES)
    write_parquet(tmp_path / "p" / "y.parquet", [encoded()], ["emu"])
    with pytest.raises(DataError, match=r"name different classes"):
        ingest(str(tmp_path / "p"), str(tmp_path / "out"))


def test_odd_file_names(tree: Path, tmp_path: Path) -> None:
    put(tree / "cat" / "é %41#?.png", encoded())
    ingest(str(tree), str(tmp_path / "out"))
    assert dict(labels(tmp_path / "out"))["cat/é %41#?.png"] == 0
    Path(os.fsdecode(os.fsencode(tree) + b"/\xff.png")).write_bytes(encoded())
    with pytest.raises(DataError, match=r"not UTF-8: .*xff.png'; rename it"):
        ingest(str(tree), str(tmp_path / "out2"))


def test_uris_work_for_source_and_out(tree: Path, tmp_path: Path) -> None:
    ingest(f"imagefolder:{tree.as_uri()}", (tmp_path / "uri").as_uri())
    ingest(f"imagefolder:{tree}", str(tmp_path / "path"))
    assert rows_of(tmp_path / "uri") == rows_of(tmp_path / "path")


def test_truncated_parquet_file_is_quarantined_and_the_others_kept(tmp_path: Path) -> None:
    for name in "abc":
        write_parquet(tmp_path / "p" / f"{name}.parquet", [encoded(i) for i in range(5)], label=[0] * 5)
    broken = tmp_path / "p" / "b.parquet"
    broken.write_bytes(broken.read_bytes()[:-50])
    manifest = ingest(str(tmp_path / "p"), str(tmp_path / "out"))
    assert manifest.num_images == 10 == len(rows_of(tmp_path / "out"))
    assert [entry.path for entry in manifest.quarantined] == ["b.parquet"]
    with pytest.raises(DataError, match=r"no readable image.*b.parquet: no readable Parquet"):
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


def test_webdataset_folder_pattern_and_labels(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "w" / "x-000.tar", {"a.png": encoded(), "a.cls": b"1", "b.jpg": encoded(kind="JPEG"), "b.cls": b"0"}
    )
    write_tar(tmp_path / "w" / "x-001.tar", {"c.png": encoded(2), "c.json": b'{"label": 1}', "d.png": encoded(3)})
    expected = [("a.png", 1), ("b.jpg", 0), ("c.png", 1), ("d.png", -1)]
    for number, source in enumerate(("w", "w/x-{000..001}.tar", "w/x-*.tar")):
        ingest(f"{tmp_path}/{source}", str(tmp_path / f"out{number}"))
        assert labels(tmp_path / f"out{number}") == expected
    with pytest.raises(DataError, match=r"no tar file matches .*x-002.tar"):
        ingest(f"webdataset:{tmp_path}/w/x-{{001..002}}.tar", str(tmp_path / "no"))


def test_a_tar_cut_in_a_label_keeps_the_image_and_twins_are_two_rows(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"d/a.v1/0.png": encoded(), "d/a.v1/0.cls": b"1", "1.png": encoded(1), "1.cls": b"1"})
    with tarfile.open(tmp_path / "x.tar") as tar:
        cut = tar.getmembers()[3].offset_data
    raw = (tmp_path / "x.tar").read_bytes()[:cut]
    (tmp_path / "x.tar").write_bytes(raw)
    manifest = ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert labels(tmp_path / "out") == [("1.png", -1), ("d/a.v1/0.png", 1)]
    assert "broken after 1 " in manifest.quarantined[0].reason
    with tarfile.open(tmp_path / "y.tar", "w") as tar:
        for i in range(2):
            put(tmp_path / "same.png", encoded(i))
            tar.add(tmp_path / "same.png", "same.png")
    assert ingest(str(tmp_path / "y.tar"), str(tmp_path / "out2")).num_images == 2


def test_webdataset_bad_samples_are_quarantined(tmp_path: Path) -> None:
    members = {
        "a.png": encoded(),
        "a.cls": b"cat",
        "b.txt": b"",
        "c.png": encoded(),
        "c.json": b'{"label": "x"}',
        "d.png": encoded(),
    }
    write_tar(tmp_path / "x.tar", members)
    manifest = ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert labels(tmp_path / "out") == [("d.png", -1)]
    assert [entry.path for entry in manifest.quarantined] == ["x.tar: a", "x.tar: b", "x.tar: c"]


@pytest.mark.parametrize("damage", ["content", "header", "boundary", "garbage"])
def test_broken_tar_keeps_the_rows_before_the_break(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {f"{i}.png": encoded(i) for i in range(6)})
    with tarfile.open(path) as tar:
        fourth = tar.getmembers()[3]
    raw = path.read_bytes()
    cut = {"content": fourth.offset_data + 20, "header": fourth.offset + 100, "boundary": fourth.offset}
    garbage = raw[: fourth.offset] + b"\x01" * 512 + raw[fourth.offset + 512 :]
    path.write_bytes(garbage if damage == "garbage" else raw[: cut[damage]])
    manifest = ingest(str(path), str(tmp_path / "out"))
    assert [name for name, _ in labels(tmp_path / "out")] == ["0.png", "1.png", "2.png"]
    assert [entry.path for entry in manifest.quarantined] == ["x.tar"]
    assert "after 2" in manifest.quarantined[0].reason


def test_torchvision_on_disk(tmp_path: Path) -> None:
    pixels = np.arange(4 * 28 * 28, dtype=np.uint8).reshape(4, 28, 28)
    for split in ("train", "t10k"):
        raw = tmp_path / "tv" / "MNIST" / "raw"
        put(raw / f"{split}-images-idx3-ubyte", struct.pack(">4i", 2051, 4, 28, 28) + pixels.tobytes())
        put(raw / f"{split}-labels-idx1-ubyte", struct.pack(">2i", 2049, 4) + bytes([0, 1, 9, 3]))
    manifest = ingest(f"torchvision:MNIST:{tmp_path}/tv", str(tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    assert [row["label"] for row in rows] == [0, 1, 9, 3] * 2
    assert len(manifest.class_names) == 10
    np.testing.assert_array_equal(Image.open(io.BytesIO(rows[2]["image"]["bytes"])), pixels[2])


def test_torchvision_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"finds no CIFAR10 in .*torchvision.datasets.CIFAR10\(.*download=True\)"):
        ingest(f"torchvision:CIFAR10:{tmp_path}", str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"Did you mean 'CIFAR10'.*Valid names: CIFAR10,"):
        ingest(f"torchvision:CIFAR:{tmp_path}", str(tmp_path / "out"))


@pytest.mark.parametrize(("source", "hint"), [("digit", "digits"), ("imgfolder:/x", "imagefolder"), ("/no/such", None)])
def test_unknown_sources_list_the_valid_ones(source: str, hint: str | None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Valid sources: digits, imagefolder:PATH") as caught:
        ingest(source, str(tmp_path / "out"))
    assert hint is None or f"Did you mean {hint!r}" in str(caught.value)


# --- quarantine ----------------------------------------------------------------------------------------------


def bad_images() -> dict[str, bytes]:
    return {
        "bomb.png": encoded(size=(20_000, 10_000), mode="1"),
        "bomb2.png": encoded(size=(12_000, 10_000), mode="1"),
        "cut.jpg": noisy_jpeg()[:-600],
        "deep.png": encoded(size=(4, 4), mode="I;16"),
        "empty.png": b"",
        "icon.png": encoded(kind="ICO"),
        "text.jpg": b"no image at all",
    }


@pytest.mark.parametrize("kind", ["imagefolder", "parquet", "webdataset"])
def test_unreadable_images_are_quarantined_alike(kind: str, tmp_path: Path) -> None:
    images = {"a.png": encoded(), **bad_images(), "z.png": encoded(1)}
    if kind == "imagefolder":
        for name, data in images.items():
            put(tmp_path / "s" / name, data)
    elif kind == "parquet":
        write_parquet(tmp_path / "s" / "x.parquet", list(images.values()))
    else:
        write_tar(tmp_path / "s" / "x.tar", images)
    manifest = ingest(f"{kind}:{tmp_path}/s", str(tmp_path / "out"))
    assert [row["image"]["bytes"] for row in rows_of(tmp_path / "out")] == [encoded(), encoded(1)]
    reasons = [entry.reason for entry in manifest.quarantined]
    wanted = ["decompression bomb", "safe to decode", "truncated", "uint16; give --range", "empty file", "ICO", "text"]
    assert all(part in reason for part, reason in zip(wanted, reasons, strict=True))
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == reasons
    assert manifest.quarantined_count == 7


def test_other_image_formats_and_bad_labels_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "f" / "x.bmp", encoded(kind="BMP"))
    put(tmp_path / "f" / "x.png", encoded())
    manifest = ingest(str(tmp_path / "f"), str(tmp_path / "out"))
    assert [(e.path, "convert it to PNG" in e.reason) for e in manifest.quarantined] == [("x.bmp", True)]
    write_parquet(tmp_path / "p.parquet", [encoded(i) for i in range(3)] + [None], CLASSES, label=[0, 2, -2, 1])
    manifest = ingest(str(tmp_path / "p.parquet"), str(tmp_path / "out2"))
    assert manifest.num_images == 1
    assert manifest.quarantined_count == 3


def test_the_manifest_caps_the_list_and_the_file_has_all(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p.parquet", [b"bad"] * 150 + [encoded()])
    manifest = ingest(str(tmp_path / "p.parquet"), str(tmp_path / "out"), rows_per_shard=40)
    assert (manifest.quarantined_count, len(manifest.quarantined), manifest.num_images) == (150, 100, 1)
    assert len((tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()) == 150


def test_no_readable_image_is_an_error_and_no_manifest(tmp_path: Path) -> None:
    put(tmp_path / "f" / "x.png", b"bad")
    with pytest.raises(DataError, match=r"has no readable image; see .*quarantine.jsonl.*x.png"):
        ingest(str(tmp_path / "f"), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    put(tmp_path / "f" / "x.png", encoded())
    assert ingest(str(tmp_path / "f"), str(tmp_path / "out")).num_images == 1
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="read as imagefolder, holds no images"):
        ingest(str(tmp_path / "void"), str(tmp_path / "out3"))


# --- the folder ----------------------------------------------------------------------------------------------


def test_the_same_source_again_returns_at_once(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = ingest(str(tree), str(tmp_path / "out"))
    monkeypatch.setattr(ingest_module, "verify_parts", None)
    assert ingest(str(tree), str(tmp_path / "out")) == manifest
    put(tree / "cat" / "new.png", encoded())
    with pytest.raises(DataError, match=r"another source or has changed.*delete this one"):
        ingest(str(tree), str(tmp_path / "out"))


def test_out_must_be_writable_empty_and_outside_the_source(tree: Path, tmp_path: Path) -> None:
    put(tmp_path / "file", b"")
    with pytest.raises(DataError, match="cannot write to"):
        ingest(str(tree), str(tmp_path / "file" / "out"))
    with pytest.raises(DataError, match="cannot write to"):
        ingest(str(tree), str(tmp_path / "file"))
    put(tmp_path / "mine" / "thesis.txt", b"")
    with pytest.raises(DataError, match=r"holds other files .'thesis.txt'"):
        ingest(str(tree), str(tmp_path / "mine"))
    with pytest.raises(DataError, match="lies inside the source"):
        ingest(str(tree), str(tree / "out"))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_rows_per_shard_is_checked(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows_per_shard is 0"):
        ingest(str(tree), str(tmp_path / "out"), rows_per_shard=0)


# --- kills and Ray -------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_killed_ingest_goes_on_and_ends_the_same(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    put(tree / "cat" / "03.png", b"bad")  # a shorter part moves every index behind it
    ingest(str(tree), str(tmp_path / "whole"), rows_per_shard=3)

    def kill(done: int, total: int, images: int) -> None:
        if done == after:
            raise Killed

    with pytest.raises(Killed):
        ingest(str(tree), str(tmp_path / "out"), rows_per_shard=3, on_progress=kill)
    with pytest.raises(DataError, match="unfinished"):
        validate_shards(str(tmp_path / "out"))
    verify_part, done = verify._verify_part, []

    def counted(part: Part, k: int, *rest: Any) -> Any:
        done.append(k)
        return verify_part(part, k, *rest)

    monkeypatch.setattr(verify, "_verify_part", counted)
    ingest(str(tree), str(tmp_path / "out"), rows_per_shard=3)
    assert done == list(range(after, 5))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out" / "_ingest").exists()


@pytest.mark.parametrize("step", ["_write_shard", "statistics", "_write_summary"])
def test_a_kill_in_the_second_pass_leaves_nothing_that_looks_complete(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    ingest(str(tree), str(tmp_path / "whole"), rows_per_shard=5)
    module = assemble if step == "_write_shard" else ingest_module
    original, calls = getattr(module, step), []

    def kill(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2 or step != "_write_shard":
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(module, step, kill)
    with pytest.raises(Killed):
        ingest(str(tree), str(tmp_path / "out"), rows_per_shard=5)
    assert (tmp_path / "out" / "shard-00000.parquet").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(module, step, original)
    ingest(str(tree), str(tmp_path / "out"), rows_per_shard=5)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_changed_source_starts_over(tree: Path, tmp_path: Path) -> None:
    def kill(done: int, total: int, images: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        ingest(str(tree), str(tmp_path / "out"), rows_per_shard=3, on_progress=kill)
    put(tree / "cat" / "00.png", encoded(200, size=(9, 9)))
    ingest(str(tree), str(tmp_path / "out"), rows_per_shard=3)
    ingest(str(tree), str(tmp_path / "whole"), rows_per_shard=3)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_sigkill(tree: Path, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pipeline.data.ingest import ingest\n"
        "def kill(done, total, images):\n    if done == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "ingest(sys.argv[1], sys.argv[2], rows_per_shard=3, on_progress=kill)"
    )
    killed = run(program, str(tree), str(tmp_path / "out"))
    assert killed.returncode == -signal.SIGKILL
    ingest(str(tree), str(tmp_path / "out"), rows_per_shard=3)
    ingest(str(tree), str(tmp_path / "whole"), rows_per_shard=3)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    put(tree / "dog" / "05.png", b"bad")
    program = (
        "import ray, sys; from pipeline.data.ingest import ingest\n"
        "ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "ingest(sys.argv[1], sys.argv[2], rows_per_shard=2, on_progress=lambda *seen: print('seen', *seen))"
    )
    printed = run(program, str(tree), str(tmp_path / "ray")).stdout
    seen = [line.split()[1:] for line in printed.splitlines() if line.startswith("seen")]
    assert [int(done) for done, _, _ in seen] == list(range(7))
    assert seen[-1] == ["6", "6", "11"]
    ingest(str(tree), str(tmp_path / "one"), rows_per_shard=2)
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


# --- order ---------------------------------------------------------------------------------------------------


def sorted_source(kind: str, folder: Path, per_class: int) -> str:
    """Images of 4 classes in the order of their classes, as files, in one Parquet, or in a tar for each class."""
    images = {f"{c}/{i:03d}.png": encoded(60 * c + i % 60) for c in range(4) for i in range(per_class)}
    if kind == "imagefolder":
        for name, data in images.items():
            put(folder / name, data)
    elif kind == "parquet":
        write_parquet(folder / "x.parquet", list(images.values()), label=[int(name[0]) for name in images])
    else:
        for c in range(4):
            own = {name: data for name, data in images.items() if name.startswith(f"{c}/")}
            labels = {name.replace(".png", ".cls"): str(c).encode() for name in own}
            write_tar(folder / f"{c}.tar", dict(sorted({**own, **labels}.items())))
    return f"{kind}:{folder}"


@pytest.mark.parametrize("kind", ["imagefolder", "parquet", "webdataset"])
def test_every_shard_of_a_sorted_source_is_a_mixture(kind: str, tmp_path: Path) -> None:
    """Also every 64 rows in it: with 300 rows a shard, 3 rows of a part stay together until the last shuffle."""
    manifest = ingest(sorted_source(kind, tmp_path / "s", 150), str(tmp_path / "out"), rows_per_shard=300)
    assert [shard.rows for shard in manifest.shards] == [300, 300]
    for rows in shards_of(tmp_path / "out"):
        found = np.array([row["label"] for row in rows])
        for start in range(0, 300 - 64, 64):
            assert np.bincount(found[start : start + 64], minlength=4).min() >= 3
    counts = np.bincount([row["label"] for row in rows_of(tmp_path / "out")])
    assert counts.tolist() == [150] * 4


def test_each_part_of_a_sorted_folder_is_a_mixture(tmp_path: Path) -> None:
    """Mixing the parts afterwards moves groups of rows; files can be shuffled one by one."""
    opened = open_source(sorted_source("imagefolder", tmp_path, 40), 40)
    for part in opened.parts:
        classes = [row.label for row in part() if isinstance(row, Row)]
        assert np.bincount(classes, minlength=4).min() >= 4


def test_the_first_rows_of_a_large_sorted_shard_are_a_mixture(tmp_path: Path) -> None:
    """41 rows of a part stay together here until the last shuffle, so that 64 rows would show a class or two."""
    ingest(sorted_source("parquet", tmp_path / "s", 1300), str(tmp_path / "out"), rows_per_shard=5200)
    first = pq.read_table(tmp_path / "out" / "shard-00000.parquet", columns=["label"])["label"].to_numpy()[:64]
    assert np.bincount(first, minlength=4).min() >= 6


def test_the_order_is_the_same_each_time_and_wherever_the_source_lies(tmp_path: Path) -> None:
    for name in "ab":
        ingest(sorted_source("imagefolder", tmp_path / name, 10), str(tmp_path / f"out-{name}"), rows_per_shard=7)
    first, second = (list(itertools.chain(*shards_of(tmp_path / f"out-{name}"))) for name in "ab")
    assert first == second
    paths = [row["image"]["path"] for row in first]
    assert paths != sorted(paths)


def test_shards_are_full_whatever_was_quarantined_or_however_parts_were_cut(tmp_path: Path) -> None:
    for c in range(3):
        members = {f"{c}{i:02d}.png": b"bad" if i % 3 == 0 else encoded(i) for i in range(25)}
        write_tar(tmp_path / "w" / f"{c}.tar", members)
    manifest = ingest(f"{tmp_path}/w", str(tmp_path / "out"), rows_per_shard=10)
    assert [shard.rows for shard in manifest.shards] == [10, 10, 10, 10, 8]
    kept = [f"{c}{i:02d}.png" for c in range(3) for i in range(25) if i % 3]
    assert [path for path, _ in labels(tmp_path / "out")] == kept


def test_row_groups_stay_within_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (verify, assemble):
        monkeypatch.setattr(module, "GROUP_BYTES", 10_000)
    images = {f"{i}.jpg": noisy_jpeg(i) for i in range(30)}
    assert all(3_000 < len(data) < 3_200 for data in images.values())
    write_tar(tmp_path / "x.tar", images)
    ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert {row["image"]["path"]: row["image"]["bytes"] for row in rows_of(tmp_path / "out")} == images
    metadata = pq.read_metadata(tmp_path / "out" / "shard-00000.parquet")
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    assert len(sizes) > 5
    assert max(sizes) < 30_000


# --- summary -------------------------------------------------------------------------------------------------


def test_the_summary_says_what_was_done(tree: Path, tmp_path: Path) -> None:
    for name, width in (("bad1.png", 11_000), ("bad2.png", 12_000)):
        put(tree / "cat" / name, encoded(size=(width, 10_000), mode="1"))
    put(tree / "dog" / "bad3.png", b"text")
    out = tmp_path / "out"
    manifest = ingest(str(tree), str(out), rows_per_shard=5)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["source"] == {"source": str(tree), "kind": "imagefolder", "digest": manifest.source.digest}
    assert (summary["images"], summary["shards"], summary["classes"]) == (12, 3, 2)
    assert summary["bytes"] == sum(path.stat().st_size for path in out.glob("shard-*"))
    assert summary["quarantined"]["images"] == 3
    assert sorted(summary["quarantined"]["reasons"].values()) == [1, 2]
    assert "PNG of N x N pixels, above the N that are safe to decode" in summary["quarantined"]["reasons"]
    assert 0 < summary["seconds"] < 60
    assert summary["versions"]["pyarrow"] == pa.__version__
    assert {"ray", "torchvision", "digpro-ray"} <= set(summary["versions"])
    assert [Path(path).exists() for path in summary["outputs"].values()] == [True, True]
    assert (out / "summary.json").stat().st_mtime_ns <= (out / "manifest.json").stat().st_mtime_ns


# --- real data -----------------------------------------------------------------------------------------------


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
