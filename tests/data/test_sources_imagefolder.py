"""Folders of images: what is read, what is left out, links, and names of all sorts."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from pipeline.data.ingest import ingest
from pipeline.data.sources import imagefolder, listing, open_source
from pipeline.errors import DataError
from tests.helpers.images import encoded, put
from tests.helpers.sources import CLASSES, labels, left_out, quarantined

pytestmark = pytest.mark.usefixtures("in_this_process")


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


def test_names_of_all_sorts(tree: Path, tmp_path: Path) -> None:
    names = [
        "é %41#?.png",
        "new\nline.png",
        " blank .png",
        "[brackets].png",
        "{a,b}.png",
        "n" * 250 + ".png",
        "日本.png",
    ]
    for name in names:
        put(tree / "cat" / name, encoded())
    Path(os.fsdecode(os.fsencode(tree) + b"/cat/\xff.png")).write_bytes(encoded())
    Path(os.fsdecode(os.fsencode(tree) + b"/cat/\xfe.txt")).write_bytes(b"text")
    Path(os.fsdecode(os.fsencode(tree) + b"/cat/\xfd.png")).write_bytes(b"bad")
    (tree / "b\\d").mkdir()
    put(Path(os.fsdecode(os.fsencode(tree) + b"/\xe9/x.png")), encoded())
    out = tmp_path / "out"
    manifest = ingest(str(tree), str(out))
    found = dict(labels(out))
    assert all(found[f"cat/{name}"] == 0 for name in names)
    assert found["cat/\\udcff.png"] == 0
    assert manifest.class_names == ["cat", "dog", "\\udce9"]
    assert found["\\udce9/x.png"] == 2
    assert set(left_out(out)) == {"cat/\\udcfe.txt"}
    assert set(quarantined(out)) == {"cat/\\udcfd.png"}


def test_a_source_below_a_folder_of_any_name(tmp_path: Path) -> None:
    for number, folder in enumerate((b"{a,b}", b"*?[x]", b"new\nline", b"\xff", b".hidden", b"_ingest", b"a:b")):
        root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + folder))
        put(root / "cat" / "0.png", encoded())
        manifest = ingest(f"imagefolder:{root}", str(tmp_path / f"out{number}"))
        assert labels(tmp_path / f"out{number}") == [("cat/0.png", 0)]
        assert manifest == ingest(f"imagefolder:{root}", str(tmp_path / f"out{number}"))
        assert ingest(str(root), str(tmp_path / f"plain{number}")).num_images == 1


def test_content_decides_and_every_file_is_accounted_for(tmp_path: Path) -> None:
    jpeg = encoded(kind="JPEG")
    read = [
        "a.jfif",
        "a.jpe",
        "a.pjpeg",
        "a.pjp",
        "nosuffix",
        "dotless.",
        "x.jpg.part",
        "x.jpg?w=100",
        "x.jpg_large",
        "x.txt",
    ]
    other = {
        "labels.csv": b"a,b\n",
        "x.npy": b"\x93NUMPY\1\0",
        "empty": b"",
        "clip.mp4": b"\0\0\0\x18ftypmp42" + bytes(8),
    }
    lost = {"x.jpg": b"<html>", "y.jpeg?size=2": b"", "z.dcm": bytes(128) + b"DICM", "deep.heic": b"text"}
    by_name = ["Thumbs.db", "desktop.ini", ".DS_Store", "._a.jpg", ".git/x.jpg", "_ingest/x.jpg", "__MACOSX/x.jpg"]
    for name in read + by_name:
        put(tmp_path / "s" / "c" / name, jpeg)
    for name, data in {**other, **lost}.items():
        put(tmp_path / "s" / "c" / name, data)
    out = tmp_path / "out"
    manifest = ingest(str(tmp_path / "s"), str(out))
    assert [name for name, _ in labels(out)] == sorted(f"c/{name}" for name in read)
    assert set(left_out(out)) == {f"c/{name}" for name in [*other, *by_name]}
    assert set(quarantined(out)) == {f"c/{name}" for name in lost}
    assert str(manifest.balance) == "25 files seen = 10 images + 4 quarantined + 11 left out by rule"


def test_no_more_than_the_head_of_other_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each file is opened once, when its part is read: a source may be a large remote folder."""
    for i in range(4):
        put(tmp_path / "s" / "cat" / f"{i}.png", encoded(i))
        put(tmp_path / "s" / "cat" / f"{i}.bin", bytes(10_000))
    opened = list[str]()
    original = imagefolder.open_file

    def counted(fs: object, path: str) -> object:
        opened.append(path)
        return original(fs, path)

    monkeypatch.setattr(imagefolder, "open_file", counted)
    source = open_source(str(tmp_path / "s"), 3)
    assert opened == []
    for part in source.parts:
        list(part())
    assert len(opened) == len(set(opened)) == 8


def test_folders_without_images_are_not_classes(tmp_path: Path) -> None:
    for name in ("train/cat/0.png", "train/dog/1.png", "val/cat/2.png"):
        put(tmp_path / "s" / name, encoded())
    put(tmp_path / "s" / "annotations" / "boxes.json", b"{}")
    put(tmp_path / "s" / "train" / "notes" / "a.txt", b"text")
    put(tmp_path / "s" / "val" / "emu" / "hashed", encoded())  # an image by its content alone
    manifest = ingest(str(tmp_path / "s"), str(tmp_path / "out"))
    assert manifest.class_names == ["cat", "dog", "emu"]
    assert dict(labels(tmp_path / "out"))["val/emu/hashed"] == 2


def test_links_are_followed_and_dangling_ones_listed(tree: Path, tmp_path: Path) -> None:
    put(tmp_path / "store" / "x.png", encoded(99))
    (tree / "emu").symlink_to(tmp_path / "store")
    (tree / "cat" / "link.png").symlink_to("00.png")
    (tree / "cat" / "gone.png").symlink_to("nowhere.png")
    (tree / "cat" / "self.png").symlink_to("self.png")
    manifest = ingest(str(tree), str(tmp_path / "out"))
    found = dict(labels(tmp_path / "out"))
    assert (found["emu/x.png"], found["cat/link.png"]) == (2, 0)
    reasons = quarantined(tmp_path / "out")
    assert reasons["cat/gone.png"] == "dangling link: it leads to 'nowhere.png', where there is no file"
    assert set(reasons) == {"cat/gone.png", "cat/self.png"}
    assert str(manifest.balance) == "16 files seen = 14 images + 2 quarantined + 0 left out by rule"


def test_a_folder_that_is_reached_twice_is_read_once(tree: Path, tmp_path: Path) -> None:
    (tree / "again").symlink_to(tree / "cat")  # sorts before the folder itself
    (tree / "cat" / "loop").symlink_to(tree)
    (tree / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "store").mkdir()
    put(tmp_path / "store" / "x.png", encoded(99))
    for name in ("e", "f"):
        (tree / name).symlink_to(tmp_path / "store")
    manifest = ingest(str(tree), str(tmp_path / "out"))
    assert manifest.num_images == 13
    assert manifest.class_names == ["cat", "dog", "e"]
    twice = "folder reached twice but read only once: it "
    assert left_out(tmp_path / "out") == {
        "again": f"{twice}has been read as 'cat'",
        "cat/loop": f"{twice}has been read as '.'",
        "cat/up": f"{twice}holds the source itself",
        "f": f"{twice}has been read as 'e'",
    }


def test_pipes_are_left_out_and_unreadable_files_and_folders_quarantined(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tree / "cat" / "pipe.png")
    put(tree / "shut" / "x.png", encoded())
    scandir, open_file = os.scandir, imagefolder.open_file

    def refuse_folder(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    def refuse_file(fs: object, path: str) -> object:
        if path.endswith("00.png"):
            raise PermissionError(13, "Permission denied")
        return open_file(fs, path)

    monkeypatch.setattr(listing.os, "scandir", refuse_folder)
    monkeypatch.setattr(imagefolder, "open_file", refuse_file)
    manifest = ingest(str(tree), str(tmp_path / "out"))
    assert "not a regular file" in left_out(tmp_path / "out")["cat/pipe.png"]
    assert quarantined(tmp_path / "out") == {
        "cat/00.png": "cannot be read: Permission denied",
        "shut": "the folder cannot be listed (Permission denied), so its files are unknown",
    }
    assert manifest.num_images == 11


def test_a_folder_without_images_says_what_is_in_it(tmp_path: Path) -> None:
    put(tmp_path / "s" / "notes.txt", b"text")
    with pytest.raises(DataError, match=r"no readable image \(1 files seen = .* 1 left out by rule\).*notes.txt"):
        ingest(str(tmp_path / "s"), str(tmp_path / "out"))
    put(tmp_path / "h" / ".hidden.png", encoded())
    with pytest.raises(
        DataError, match=r"holds no images; it left out 1 files, the first of which is '.hidden.png' \(hidden"
    ):
        ingest(str(tmp_path / "h"), str(tmp_path / "out2"))


def test_a_part_takes_few_bytes_for_each_file(tmp_path: Path) -> None:
    """The driver holds the parts of a whole source, and sends them to the tasks."""
    for i in range(1000):
        put(tmp_path / "s" / f"class-{i % 7}" / f"{i:04d}.png", b"")
    (part,) = open_source(f"imagefolder:{tmp_path}/s", 5000).parts
    bytes_of_a_name = len("class-0/0000.png")
    assert len(pickle.dumps(part)) < 1000 * (bytes_of_a_name + 6)
