"""Ingest: quarantine, tally, the folder it writes, kills, order, and Ray against one process. Sources are beside."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import assemble, verify
from pipeline.data import ingest as ingest_module
from pipeline.data.ingest import ingest
from pipeline.data.pixel_options import AS_THEY_ARE
from pipeline.data.shards import LABELS, WORK_FOLDER, validate_shards
from pipeline.data.sources import Row, SourcePart, open_source
from pipeline.errors import ConfigError, DataError
from pipeline.lease import LEASE, hold
from pipeline.storage import Folder
from tests.helpers.images import encoded, put
from tests.helpers.sources import (
    CLASSES,
    contents,
    labels,
    left_out,
    noisy_jpeg,
    quarantined,
    rows_of,
    shards_of,
    write_parquet,
    write_tar,
)

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("in_this_process")


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `program` in a Python of its own, where it may kill itself or start Ray."""
    command = [sys.executable, "-c", program, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


# --- sources -------------------------------------------------------------------------------------------------


def test_uris_work_for_source_and_out(tree: Path, tmp_path: Path) -> None:
    ingest(f"imagefolder:{tree.as_uri()}", (tmp_path / "uri").as_uri())
    ingest(f"imagefolder:{tree}", str(tmp_path / "path"))
    assert rows_of(tmp_path / "uri") == rows_of(tmp_path / "path")


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


def test_bad_labels_and_absent_bytes_are_counted(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p.parquet", [encoded(i) for i in range(3)] + [None], CLASSES, label=[0, 2, -2, 1])
    manifest = ingest(str(tmp_path / "p.parquet"), str(tmp_path / "out"))
    assert manifest.num_images == 1
    assert manifest.quarantined_count == 3


def test_the_manifest_caps_the_list_and_the_file_has_all(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p.parquet", [b"bad"] * 150 + [encoded()])
    manifest = ingest(str(tmp_path / "p.parquet"), str(tmp_path / "out"), rows_per_shard=40)
    assert (manifest.quarantined_count, len(manifest.quarantined), manifest.num_images) == (150, 100, 1)
    assert len((tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()) == 150


def test_no_readable_image_is_an_error_and_no_manifest(tmp_path: Path) -> None:
    put(tmp_path / "f" / "x.png", b"bad")
    with pytest.raises(DataError, match=r"has no readable image .*; see .*quarantine.jsonl.*x.png"):
        ingest(str(tmp_path / "f"), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    put(tmp_path / "f" / "x.png", encoded())
    assert ingest(str(tmp_path / "f"), str(tmp_path / "out")).num_images == 1
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="read as imagefolder, holds no images"):
        ingest(str(tmp_path / "void"), str(tmp_path / "out3"))


# --- tally ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["imagefolder", "parquet", "webdataset", "digits"])
def test_what_was_seen_is_what_it_became(kind: str, tmp_path: Path) -> None:
    images = {"a.png": encoded(), "b.png": b"bad", "c.png": encoded(1)}
    for name, data in {**images, "notes.txt": b"text", ".hidden.png": encoded()}.items():
        if kind == "imagefolder":
            put(tmp_path / "s" / name, data)
    put(tmp_path / "s" / "README.md", b"# Text")
    if kind == "parquet":
        write_parquet(tmp_path / "s" / "x.parquet", list(images.values()), label=[0, 1, 1])
    elif kind == "webdataset":
        write_tar(tmp_path / "s" / "x.tar", {**images, "a.cls": b"1", "c.txt": b"caption"})
    out = tmp_path / "out"
    manifest = ingest("digits" if kind == "digits" else f"{kind}:{tmp_path}/s", str(out))
    tally = manifest.balance
    assert tally is not None
    expected = {
        "imagefolder": ("files", 6, 2, 1, 3),
        "parquet": ("rows", 4, 2, 1, 1),
        "webdataset": ("members", 6, 2, 1, 3),
        "digits": ("rows", 1797, 1797, 0, 0),
    }
    assert tuple(tally.model_dump().values())[:5] == expected[kind]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["balance"] == tally.model_dump()
    assert sum(summary["left_out"]["rules"].values()) == summary["left_out"]["files"] == tally.left_out
    assert bool(left_out(out)) == (tally.left_out > 0)
    assert len(quarantined(out)) == tally.quarantined


def test_counts_that_do_not_add_up_are_our_fault(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_source(str(tree), 5000)
    monkeypatch.setattr(ingest_module, "open_source", lambda *_: replace(opened, seen=13))
    with pytest.raises(RuntimeError, match=r"do not add up: 13 files seen = 12 images \+ 0 quarantined \+ 0 left out"):
        ingest(str(tree), str(tmp_path / "out"))


# --- the folder ----------------------------------------------------------------------------------------------


def test_the_same_source_again_returns_at_once(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = ingest(str(tree), str(tmp_path / "out"))
    monkeypatch.setattr(ingest_module, "verify_parts", None)
    assert ingest(str(tree), str(tmp_path / "out")) == manifest
    put(tree / "cat" / "new.png", encoded())
    with pytest.raises(DataError, match=r"a different source or its content has changed.*delete this one"):
        ingest(str(tree), str(tmp_path / "out"))


def test_new_times_alone_are_the_same_source(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second download or `git clone` changes times; a file that was written anew is found whatever its time is."""
    manifest = ingest(str(tree), str(tmp_path / "out"))
    for path in tree.rglob("*.png"):
        os.utime(path, (1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(ingest_module, "verify_parts", None)
        assert ingest(str(tree), str(tmp_path / "out")).source.digest == manifest.source.digest
        patch.setattr(ingest_module, "read_content_digest", None)  # the new times are known from now on
        ingest(str(tree), str(tmp_path / "out"))
    before = (tree / "cat" / "00.png").read_bytes()
    (tree / "cat" / "00.png").write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(DataError, match=r"its content has changed since; choose another folder"):
        ingest(str(tree), str(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["imagefolder", "parquet", "webdataset"])
def test_the_digest_is_that_of_the_content(kind: str, tmp_path: Path) -> None:
    """Not of the place, the times, or the parts into which the source was cut."""
    digests, with_order = set[str](), set[str]()
    for rows_per_shard, name in ((3, "a"), (7, "b")):
        source = sorted_source(kind, tmp_path / name, 5)
        for path in (tmp_path / name).rglob("*.*"):
            os.utime(path, (rows_per_shard, rows_per_shard))
        manifest = ingest(source, str(tmp_path / f"out-{name}"), rows_per_shard=rows_per_shard)
        digests.add(manifest.source.digest)
        with_order.add(manifest.digest)
    assert len(digests) == 1
    assert len(with_order) == 2


def test_a_manifest_without_a_digest_of_content_is_not_called_another_source(tree: Path, tmp_path: Path) -> None:
    manifest = ingest(str(tree), str(tmp_path / "out"))
    old = manifest.model_copy(update={"source": manifest.source.model_copy(update={"stamp": ""})})
    old.write(str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"ingested by an earlier version"):
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
    (tmp_path / "link").symlink_to(tree)
    with pytest.raises(DataError, match="lies inside the source"):
        ingest(str(tree), str(tmp_path / "link" / "out"))


def test_rows_per_shard_is_checked(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows_per_shard is 0"):
        ingest(str(tree), str(tmp_path / "out"), rows_per_shard=0)


# --- kills and Ray -------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_killed_ingest_is_resumed_and_ends_the_same(
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

    def counted(part: SourcePart, k: int, *rest: Any) -> Any:
        done.append(k)
        return verify_part(part, k, *rest)

    monkeypatch.setattr(verify, "_verify_part", counted)
    ingest(str(tree), str(tmp_path / "out"), rows_per_shard=3)
    assert done == list(range(after, 5))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out" / "_ingest").exists()


@pytest.mark.parametrize("step", ["_write_shard", "write_labels", "statistics", "_write_summary"])
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


def test_one_command_ingests_into_a_folder_at_a_time(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with hold(Folder(str(out)).make()), pytest.raises(ConfigError, match=r"another command is working in .*out: proc"):
        ingest(str(tree), str(out))
    assert ingest(str(tree), str(out)).num_images == 12
    assert not (out / LEASE).exists()


def test_work_that_a_killed_command_left_beside_its_manifest_is_deleted(tree: Path, tmp_path: Path) -> None:
    ingest(str(tree), str(tmp_path / "out"))
    (tmp_path / "out" / WORK_FOLDER / "v1").mkdir(parents=True)
    ingest(str(tree), str(tmp_path / "out"))
    assert not (tmp_path / "out" / WORK_FOLDER).exists()


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


@pytest.mark.parametrize("done", [0, 4])
def test_reports_keep_no_labels_of_their_own(tree: Path, tmp_path: Path, done: int) -> None:
    """A part of many classes would have as many counts: they are summed as the reports come, old ones and new."""
    (tmp_path / "work").mkdir()
    arguments = open_source(str(tree), 3), AS_THEY_ARE, str(tmp_path), f"{tmp_path}/work", 3, 1
    if done:
        verify.verify_parts(*arguments, None)
    seen: list[tuple[int, int, int]] = []
    reports, found = verify.verify_parts(*arguments, lambda *counts: seen.append(counts))
    assert [report.images for report in reports] == [3, 3, 3, 3]
    assert [report.labels for report in reports] == [{}] * 4
    assert found == {0: 6, 1: 6}
    assert seen == [(k, 4, 3 * k) for k in range(done, 5)]


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


@pytest.mark.parametrize(("limit", "value"), [("ROW_GROUP_BYTES", 10_000), ("ROW_GROUP_ROWS", 4)])
def test_row_groups_stay_within_their_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """They change neither what is shuffled together, nor the order."""
    images = {f"{i}.jpg": noisy_jpeg(i) for i in range(30)}
    assert all(3_000 < len(data) < 3_200 for data in images.values())
    write_tar(tmp_path / "x.tar", images)
    ingest(str(tmp_path / "x.tar"), str(tmp_path / "whole"))
    monkeypatch.setattr(assemble, limit, value)
    manifest = ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "whole")
    metadata = pq.read_metadata(tmp_path / "out" / "shard-00000.parquet")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert tuple(group.num_rows for group in groups) == manifest.shards[0].groups
    assert {group.num_rows for group in groups} == {3} if limit == "ROW_GROUP_BYTES" else {3, 4}
    assert len(pq.read_metadata(tmp_path / "whole" / "shard-00000.parquet").to_dict()["row_groups"]) == 1


def test_what_a_task_holds_stays_within_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (verify, assemble):
        monkeypatch.setattr(module, "HELD_BYTES", 10_000)
    images = {f"{i}.jpg": noisy_jpeg(i) for i in range(30)}
    write_tar(tmp_path / "x.tar", images)
    manifest = ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert {row["image"]["path"]: row["image"]["bytes"] for row in rows_of(tmp_path / "out")} == images
    assert set(manifest.shards[0].groups) <= {2, 3, 4}


# --- labels --------------------------------------------------------------------------------------------------


def test_the_file_of_labels_has_those_of_all_shards_in_order(tmp_path: Path) -> None:
    manifest = ingest(sorted_source("parquet", tmp_path / "s", 30), str(tmp_path / "out"), rows_per_shard=7)
    assert manifest.labelled
    assert len(manifest.shards) == 18
    expected = [row["label"] for row in itertools.chain(*shards_of(tmp_path / "out"))]
    assert pq.read_table(tmp_path / "out" / LABELS)["label"].to_pylist() == expected


def test_shards_are_a_source_themselves(tmp_path: Path) -> None:
    """The file of labels is not taken for one of them."""
    manifest = ingest(sorted_source("parquet", tmp_path / "s", 5), str(tmp_path / "out"), rows_per_shard=7)
    again = ingest(str(tmp_path / "out"), str(tmp_path / "again"), rows_per_shard=7)
    assert again.num_images == manifest.num_images
    assert left_out(tmp_path / "again")[LABELS] == "not a Parquet file"


def test_labels_of_a_killed_ingest_do_not_outlive_a_source_that_lost_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*arguments: Any) -> None:
        raise Killed

    put(tmp_path / "s" / "cat" / "0.png", encoded())
    with monkeypatch.context() as patch:
        patch.setattr(ingest_module, "_write_summary", kill)
        with pytest.raises(Killed):
            ingest(str(tmp_path / "s"), str(tmp_path / "out"))
    assert (tmp_path / "out" / LABELS).exists()
    (tmp_path / "s" / "cat" / "0.png").rename(tmp_path / "s" / "0.png")
    (tmp_path / "s" / "cat").rmdir()
    assert ingest(str(tmp_path / "s"), str(tmp_path / "out")).labelled is False
    assert not (tmp_path / "out" / LABELS).exists()


# --- summary -------------------------------------------------------------------------------------------------


def test_the_summary_says_what_was_done(tree: Path, tmp_path: Path) -> None:
    for name, width in (("bad1.png", 11_000), ("bad2.png", 12_000)):
        put(tree / "cat" / name, encoded(size=(width, 10_000), mode="1"))
    put(tree / "dog" / "bad3.png", b"text")
    out = tmp_path / "out"
    manifest = ingest(str(tree), str(out), rows_per_shard=5)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["source"] == manifest.source.model_dump()
    assert (summary["images"], summary["shards"], summary["classes"]) == (12, 3, 2)
    assert summary["bytes"] == sum(path.stat().st_size for path in out.glob("shard-*"))
    assert summary["quarantined"]["images"] == 3
    assert sorted(summary["quarantined"]["reasons"].values()) == [1, 2]
    assert "PNG of N x N pixels, more than the N that are safe to decode" in summary["quarantined"]["reasons"]
    assert 0 < summary["seconds"] < 60
    assert summary["versions"]["pyarrow"] == pa.__version__
    assert {"ray", "torchvision", "digpro-ray"} <= set(summary["versions"])
    assert [Path(path).exists() for path in summary["outputs"].values()] == [True, True, True]
    assert (out / "summary.json").stat().st_mtime_ns <= (out / "manifest.json").stat().st_mtime_ns
