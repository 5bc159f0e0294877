"""Tar sources: samples in any order, labels in all forms, links, and damage."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.data.ingest import ingest
from pipeline.data.sources import webdataset
from pipeline.errors import DataError
from tests.helpers.images import encoded, put
from tests.helpers.sources import labels, left_out, noisy_jpeg, quarantined, write_tar

pytestmark = pytest.mark.usefixtures("in_this_process")


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
    assert manifest.quarantined_count == 0
    assert "broken after 1.cls " in manifest.quarantined[0].reason
    assert str(manifest.balance).endswith("damaged files that may hold more images: 1")
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
    assert [entry.path for entry in manifest.quarantined] == ["x.tar: a.png", "x.tar: c.png"]
    assert left_out(tmp_path / "out")["x.tar: *.txt"] == "not an image by its content: empty file; fetch it again"


@pytest.mark.parametrize("damage", ["content", "header", "boundary", "garbage", "zeros"])
def test_a_broken_tar_keeps_what_is_whole(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {f"{i}.png": encoded(i) for i in range(6)})
    with tarfile.open(path) as tar:
        fourth = tar.getmembers()[3]
    raw = path.read_bytes()
    cut = {"content": fourth.offset_data + 20, "header": fourth.offset + 100, "boundary": fourth.offset}
    garbage = raw[: fourth.offset] + b"\x01" * 512 + raw[fourth.offset + 512 :]
    zeros = raw[: fourth.offset] + bytes(1024) + raw[fourth.offset + 1024 :]  # the whole member
    path.write_bytes({"garbage": garbage, "zeros": zeros}.get(damage) or raw[: cut[damage]])
    manifest = ingest(str(path), str(tmp_path / "out"))
    kept = [0, 1, 2, 4, 5] if damage in ("garbage", "zeros") else [0, 1, 2]
    assert [name for name, _ in labels(tmp_path / "out")] == [f"{i}.png" for i in kept]
    assert manifest.quarantined_count == (damage == "content")  # the others lost members that nobody can count
    reasons = quarantined(tmp_path / "out")
    assert ("x.tar: 3.png" in reasons) == (damage == "content")
    assert f"after {3 if damage == 'content' else 2}.png" in reasons["x.tar"]


def samples(count: int = 6) -> list[tuple[str, bytes]]:
    return [m for i in range(count) for m in ((f"{i}.png", encoded(i)), (f"{i}.cls", str(i % 3).encode()))]


def write_members(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> None:
    """A tar whose members may have equal names."""
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


LABELLED = [(f"{i}.png", i % 3) for i in range(6)]


@pytest.mark.parametrize("order", ["images first", "labels first", "labels backwards"])
def test_labels_are_joined_in_any_order(tmp_path: Path, order: str) -> None:
    images, classes = samples()[::2], samples()[1::2]
    orders = {
        "images first": images + classes,
        "labels first": classes + images,
        "labels backwards": images + classes[::-1],
    }
    write_members(tmp_path / "x.tar", orders[order])
    manifest = ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert labels(tmp_path / "out") == LABELLED
    assert str(manifest.balance) == "12 members seen = 6 images + 0 quarantined + 6 left out by rule"


def test_a_label_too_far_from_its_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "HELD_BYTES", 3 * len(encoded()))
    write_members(tmp_path / "x.tar", sorted(samples(), key=lambda member: member[0].endswith("cls")))
    with pytest.raises(DataError, match=r"x.tar is not sorted: .* between 0.cls and its image; .* `tar --sort=name`"):
        ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    write_members(tmp_path / "y.tar", samples()[::2])  # no labels at all
    assert ingest(str(tmp_path / "y.tar"), str(tmp_path / "out2")).num_images == 6


def test_a_tar_made_on_macos_keeps_labels_and_loses_nothing(tmp_path: Path) -> None:
    double = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(80)
    members = [m for name, data in samples() for m in ((f"./._{name}", double), (f"./{name}", data))]
    write_members(tmp_path / "x.tar", members)
    manifest = ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert labels(tmp_path / "out") == LABELLED
    assert manifest.quarantined_count == 0
    assert "hidden" in left_out(tmp_path / "out")["x.tar: ._0.png"]


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz", "x.tar.zst", "wrong.tar"])
def test_compressed_tars(tmp_path: Path, name: str) -> None:
    modes = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz", "tar": "w:gz", "zst": "w"}
    (tmp_path / "s").mkdir()
    path = tmp_path / "s" / name
    write_members(path, samples(), modes[name.rpartition(".")[2]])
    if name.endswith("zst"):
        path.write_bytes(pa.compress(path.read_bytes(), codec="zstd", asbytes=True))
    ingest(str(tmp_path / "s"), str(tmp_path / "out"))
    assert labels(tmp_path / "out") == LABELLED


def test_a_compressed_tar_that_was_cut_short_keeps_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    write_members(path, [(f"{i}.jpg", noisy_jpeg(i)) for i in range(6)], "w:gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    manifest = ingest(str(path), str(tmp_path / "out"))
    assert [name for name, _ in labels(tmp_path / "out")] == ["0.jpg", "1.jpg"]
    assert manifest.quarantined_count == 1
    assert "cut short" in quarantined(tmp_path / "out")["x.tar.gz: 2.jpg"]
    assert "the rest is lost" in quarantined(tmp_path / "out")["x.tar.gz"]


def test_an_empty_tar_says_so(tmp_path: Path) -> None:
    write_members(tmp_path / "x.tar", [])
    with pytest.raises(DataError, match=r"no readable image .*starts with x.tar: the tar is empty"):
        ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    for number, content in enumerate((b"", b"<html>" * 200, b"\x1f\x8b bad")):
        put(tmp_path / "x.tar", content)
        with pytest.raises(DataError, match=r"starts with x.tar: not a readable tar file: "):
            ingest(str(tmp_path / "x.tar"), str(tmp_path / f"out{number}"))


def test_an_empty_or_foreign_tar_does_not_cost_the_others(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    write_members(tmp_path / "s" / "a.tar", [])
    put(tmp_path / "s" / "b.tar", b"text" * 500)
    write_members(tmp_path / "s" / "c.tar", samples())
    manifest = ingest(str(tmp_path / "s"), str(tmp_path / "out"))
    assert (manifest.num_images, manifest.quarantined_count) == (6, 1)
    assert set(quarantined(tmp_path / "out")) == {"a.tar", "b.tar"}


def test_concatenated_tars_are_read_to_their_end(tmp_path: Path) -> None:
    for half in (0, 1):
        write_members(tmp_path / f"{half}.tar", samples()[6 * half : 6 * half + 6])
    (tmp_path / "x.tar").write_bytes((tmp_path / "0.tar").read_bytes() + (tmp_path / "1.tar").read_bytes())
    ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert labels(tmp_path / "out") == LABELLED


def test_members_that_are_links_are_followed_or_listed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, target, kind in (
            ("first.png", "d/0.png", tarfile.SYMTYPE),
            ("d", "", tarfile.DIRTYPE),
            ("d/0.png", "", tarfile.REGTYPE),
            ("hard.png", "d/0.png", tarfile.LNKTYPE),
            ("gone.png", "nowhere.png", tarfile.SYMTYPE),
            ("loop.png", "loop.png", tarfile.SYMTYPE),
            ("pipe.png", "", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            data = encoded() if kind == tarfile.REGTYPE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    manifest = ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert [name for name, _ in labels(tmp_path / "out")] == ["d/0.png", "first.png", "hard.png"]
    reasons = quarantined(tmp_path / "out")
    assert set(reasons) == {"x.tar: gone.png", "x.tar: loop.png"}
    assert "link to 'nowhere.png', which is not in the tar" in reasons["x.tar: gone.png"]
    assert "not a regular file" in left_out(tmp_path / "out")["x.tar: pipe.png"]
    assert manifest.balance is not None
    assert manifest.balance.seen == 6


def test_names_with_dots_are_counted_and_the_rule_is_named(tmp_path: Path) -> None:
    members = {
        "a.b.png": encoded(),
        "a.b.cls": b"1",
        "a.c.png": encoded(1),
        "a.cls": b"2",
        "z.b.cls": b"3",
    }
    write_tar(tmp_path / "x.tar", members)
    manifest = ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert labels(tmp_path / "out") == [("a.b.png", 1), ("a.c.png", 2)]
    lines = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
    assert "label without an image of the same name up to the first dot" in [e["rule"] for e in lines]
    assert str(manifest.balance) == "5 members seen = 2 images + 0 quarantined + 3 left out by rule"


def test_equal_names_are_rows_of_their_own(tmp_path: Path) -> None:
    write_members(tmp_path / "x.tar", samples(2) + samples(2))
    ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert labels(tmp_path / "out") == [("0.png", 0), ("0.png", 0), ("1.png", 1), ("1.png", 1)]
    write_members(tmp_path / "y.tar", [("0.png", encoded()), ("0.png", encoded(1)), ("0.cls", b"2")])
    ingest(str(tmp_path / "y.tar"), str(tmp_path / "out2"))
    assert labels(tmp_path / "out2") == [("0.png", 2), ("0.png", 2)]
    write_members(tmp_path / "z.tar", [("0.png", encoded()), ("0.cls", b"0"), ("0.png", encoded(1)), ("0.cls", b"1")])
    ingest(str(tmp_path / "z.tar"), str(tmp_path / "out3"))
    assert labels(tmp_path / "out3") == [("0.png", 0), ("0.png", 1)]


@pytest.mark.parametrize(
    ("suffix", "content", "label"),
    [
        (".cls", b"1", 1),
        (".cls", b" 2\n", 2),
        (".cls", b"\xef\xbb\xbf1", 1),
        (".cls", b"1.0", 1),
        (".cls", b"-1", -1),
        (".cls", b"cat", "the label 'cat' is not an integer"),
        (".cls", b"", "the label '' is not an integer"),
        (".cls", b"1_0", "the label '1_0' is not an integer"),
        (".cls", "\u0661".encode(), "is not an integer"),
        (".cls", b"\xff\xfe", "is not an integer"),
        (".cls", b"9" * 5000, "is not an integer"),
        (".json", b'{"label": 1}', 1),
        (".json", b'{"label": "1"}', 1),
        (".json", b'{"label": 1.0}', 1),
        (".json", b'{"cls": 2}', 2),
        (".json", b'{"label": null}', -1),
        (".json", b'{"caption": "a cat"}', -1),
        (".json", b'{"label": true}', "the label True is not an integer"),
        (".json", b'{"label": 1.5}', "the label 1.5 is not an integer"),
        (".json", b'{"label": NaN}', "the label nan is not an integer"),
        (".json", b'{"label": Infinity}', "the label inf is not an integer"),
        (".json", b'{"label": [1]}', r"the label \[1\] is not an integer"),
        (".json", b"[1]", r"the image is \[1\], not an object with a 'label'"),
        (".json", b'{"label": ', "the .json beside the image is malformed"),
        (".json", b"[" * 100_000, "the .json beside the image is malformed"),
    ],
)
def test_forms_of_labels(suffix: str, content: bytes, label: int | str) -> None:
    if isinstance(label, int):
        assert webdataset.parse_label(suffix, content, ()) == label
    else:
        with pytest.raises(ValueError, match=label):
            webdataset.parse_label(suffix, content, ())


def test_names_of_classes_are_labels_where_they_are_listed(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    members = [("0.png", encoded()), ("0.cls", b"dog\n"), ("1.png", encoded(1)), ("1.json", b'{"label": "emu"}')]
    write_members(tmp_path / "s" / "x.tar", members)
    put(tmp_path / "s" / "dataset.json", b'{"class_names": ["cat", "dog"]}')
    ingest(str(tmp_path / "s"), str(tmp_path / "out"))
    assert labels(tmp_path / "out") == [("0.png", 1)]
    assert "label 'emu' is not an integer" in quarantined(tmp_path / "out")["x.tar: 1.png"]


def test_labels_that_disagree_are_quarantined(tmp_path: Path) -> None:
    members = {"0.png": encoded(), "0.cls": b"1", "0.json": b'{"label": 2}', "1.png": encoded(1)}
    write_tar(tmp_path / "x.tar", members)
    ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert "labels disagree: [1, 2]" in quarantined(tmp_path / "out")["x.tar: 0.png"]


def test_content_decides_what_a_member_is(tmp_path: Path) -> None:
    members = {
        "0.jfif": encoded(kind="JPEG"),
        "1.img": encoded(),
        "2": encoded(1),
        "3.npy": b"\x93NUMPY",
        "4.png": b"x",
    }
    write_tar(tmp_path / "x.tar", members)
    ingest(str(tmp_path / "x.tar"), str(tmp_path / "out"))
    assert [name for name, _ in labels(tmp_path / "out")] == ["0.jfif", "1.img", "2"]
    assert list(quarantined(tmp_path / "out")) == ["x.tar: 4.png"]
    assert "NumPy" in left_out(tmp_path / "out")["x.tar: *.npy"]
