"""The classes of a list out of a source that has more."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipeline.data import ingest as ingest_module
from pipeline.data import verify
from pipeline.data.class_lists import ClassList, load_class_list
from pipeline.data.ingest import ingest
from pipeline.data.shards import read_manifest
from pipeline.data.sources import listing
from pipeline.errors import DataError
from tests.helpers.images import encoded, put
from tests.helpers.sources import contents, labels, left_out, quarantined, write_parquet, write_tar

pytestmark = pytest.mark.usefixtures("in_this_process")


def listed(*names: str, name: str = "mine", **counts: int) -> ClassList:
    return ClassList(name=name, images={**dict.fromkeys(names), **counts})


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """An image folder of the classes bus, cat and dog, two images each, and what else may lie there."""
    for k, name in enumerate(("bus", "cat", "dog")):
        for i in range(2):
            put(tmp_path / "three" / name / "deep" / f"{i}.png", encoded(10 * k + i))
    put(tmp_path / "three" / "loose.png", encoded())
    put(tmp_path / "three" / "cat" / "notes.txt", b"text")
    put(tmp_path / "three" / ".git" / "HEAD", b"text")
    return tmp_path / "three"


RULE = "its class is not on the list: mine"


@pytest.mark.parametrize("where", ["local", "remote"])
def test_other_folders_are_left_out_as_a_whole(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "remote":  # as every filesystem but the local one is listed
        as_remote = partial(listing._list_remote, pafs.LocalFileSystem())
        monkeypatch.setattr(listing, "_list_local", as_remote)
    out = tmp_path / "out"
    manifest = ingest(str(three), str(out), classes=listed("dog", "cat"))
    assert labels(out) == [(f"{name}/deep/{i}.png", k) for k, name in enumerate(("cat", "dog")) for i in range(2)]
    assert (manifest.class_names, manifest.class_counts) == (["cat", "dog"], [2, 2])
    assert {path: rule for path, rule in left_out(out).items() if rule == RULE} == {
        "bus": RULE,
        "loose.png": RULE,
        ".git": RULE,
    }
    expected = "8 files and unlisted folders seen = 4 images + 0 quarantined + 4 left out by rule"
    assert str(manifest.balance) == expected
    assert manifest.source.classes == "mine"


def test_classes_are_called_by_their_titles(three: Path, tmp_path: Path) -> None:
    """Also when the list has got its titles after the images were ingested."""
    given = listed("dog", "cat")
    assert ingest(str(three), str(tmp_path / "out"), classes=given).class_captions == ["cat", "dog"]
    titled = given.model_copy(update={"titles": {"cat": "Felis catus", "emu": "Dromaius"}})
    ingest(str(three), str(tmp_path / "out"), classes=titled)
    found = read_manifest(str(tmp_path / "out"))
    assert (found.class_names, found.class_captions) == (["cat", "dog"], ["Felis catus", "dog"])


def test_other_folders_are_not_listed(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet has 1,000 of them and 1.28 million files, perhaps at the other end of a network."""
    entered = list[str]()
    enter = listing._enter

    def counted(root: str, folder: str, *rest: object) -> object:
        entered.append(folder)
        return enter(root, folder, *rest)

    monkeypatch.setattr(listing, "_enter", counted)
    ingest(f"imagefolder:{three}", str(tmp_path / "out"), classes=listed("cat"))
    assert sorted(entered) == ["", "cat", "cat/deep"]
    selected, info = list[str](), pafs.LocalFileSystem()
    monkeypatch.setattr(listing.pafs, "FileSelector", lambda path, **options: selected.append(path) or _selector(path))
    listing._list_remote(info, str(three), lambda name: None if name.startswith("cat") else "other")
    assert selected == [str(three), f"{three}/cat", f"{three}/cat/deep"]


_selector = pafs.FileSelector


def test_splits_and_folders_named_as_splits(tmp_path: Path) -> None:
    for name in ("train/cat/0.png", "train/dog/0.png", "val/cat/1.png", "val/flat.png", "Test/dog/2.png"):
        put(tmp_path / "s" / name, encoded())
    ingest(str(tmp_path / "s"), str(tmp_path / "out"), classes=listed("cat"))
    assert labels(tmp_path / "out") == [("train/cat/0.png", 0), ("val/cat/1.png", 0)]
    assert set(left_out(tmp_path / "out")) == {"train/dog", "Test/dog", "val/flat.png"}
    for name in ("train/0.png", "bus/1.png", "car/2.png"):  # vehicles
        put(tmp_path / "v" / name, encoded())
    ingest(str(tmp_path / "v"), str(tmp_path / "out2"), classes=listed("train", "bus"))
    assert labels(tmp_path / "out2") == [("bus/1.png", 0), ("train/0.png", 1)]


def test_the_layout_of_tiny_imagenet(tmp_path: Path) -> None:
    """Images lie a folder deeper than classes; those of val and test have no folder of their class."""
    for name in ("n01", "n02"):
        put(tmp_path / "t" / "train" / name / "images" / f"{name}_0.JPEG", encoded(kind="JPEG"))
        put(tmp_path / "t" / "train" / name / f"{name}_boxes.txt", b"n01_0.JPEG 0 0 62 62\n")
    put(tmp_path / "t" / "val" / "images" / "val_0.JPEG", encoded(kind="JPEG"))
    put(tmp_path / "t" / "val" / "val_annotations.txt", b"val_0.JPEG n01\n")
    put(tmp_path / "t" / "test" / "images" / "test_0.JPEG", encoded(kind="JPEG"))
    train = [(f"train/n0{k}/images/n0{k}_0.JPEG", k - 1) for k in (1, 2)]
    assert ingest(str(tmp_path / "t"), str(tmp_path / "all")).class_names == ["n01", "n02"]
    others = [("test/images/test_0.JPEG", -1), *train, ("val/images/val_0.JPEG", -1)]
    assert labels(tmp_path / "all") == others
    ingest(str(tmp_path / "t"), str(tmp_path / "listed"), classes=listed("n01", "n02"))
    assert labels(tmp_path / "listed") == train
    ingest(str(tmp_path / "t" / "train"), str(tmp_path / "train"), classes=listed("n01", "n02"))
    assert labels(tmp_path / "train") == [(path.removeprefix("train/"), k) for path, k in train]


def test_the_layout_of_rsod(tmp_path: Path) -> None:
    """An archive for each class, in which annotations lie beside the images."""
    counts = load_class_list("rsod").images
    for name in counts:
        put(tmp_path / "r" / name / "JPEGImages" / f"{name}_1.jpg", encoded(kind="JPEG"))
        put(tmp_path / "r" / name / "Annotation" / "xml" / f"{name}_1.xml", b"<annotation/>")
    manifest = ingest(f"imagefolder:{tmp_path / 'r'}", str(tmp_path / "out"), classes=load_class_list("rsod"))
    assert labels(tmp_path / "out") == [(f"{name}/JPEGImages/{name}_1.jpg", k) for k, name in enumerate(counts)]
    assert manifest.count_warning.startswith(
        "class counts differ from rsod: 4 images, 976 expected; aircraft: 1 images, 446 expected; "
    )


def source_of(kind: str, folder: Path) -> str:
    """Five images of the classes bus, cat, dog, cat, and one without a class; the last of class bus is damaged."""
    images, numbers = [*(encoded(i) for i in range(4)), b"bad"], [0, 1, 2, 1, 0]
    if kind == "parquet":
        write_parquet(folder / "x.parquet", [*images, encoded(9)], ["bus", "cat", "dog"], label=[*numbers, -1])
    else:
        members = {f"{i}.png": data for i, data in enumerate([*images, encoded(9)])}
        write_tar(folder / "x.tar", {**members, **{f"{i}.cls": b"%d" % k for i, k in enumerate(numbers)}})
        put(folder / "dataset.json", json.dumps({"class_names": ["bus", "cat", "dog"]}).encode())
    return f"{kind}:{folder}"


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_rows_of_other_classes_are_left_out_and_counted(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = ingest(source_of(kind, tmp_path / "s"), str(out), classes=listed("dog", "cat"))
    assert [label for _, label in labels(out)] == [0, 1, 0]
    assert (manifest.class_names, manifest.class_counts) == (["cat", "dog"], [2, 1])
    rows = {path: rule for path, rule in left_out(out).items() if rule == RULE}
    assert rows == {"class bus": RULE, "images without a class": RULE}
    assert quarantined(out) == {}
    tally = manifest.balance
    assert tally is not None
    assert tally.left_out == {"parquet": 3, "webdataset": 9}[kind]  # of tars, labels and dataset.json too


def test_a_label_out_of_range_is_quarantined_as_ever(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [encoded(i) for i in range(3)], ["bus", "cat"], label=[1, 2, -2])
    ingest(str(tmp_path / "x.parquet"), str(tmp_path / "out"), classes=listed("cat"))
    assert len(labels(tmp_path / "out")) == 1
    assert len(quarantined(tmp_path / "out")) == 2


def test_a_listed_class_that_the_source_lacks_is_named(three: Path, tmp_path: Path) -> None:
    (three / "emu").mkdir()
    put(three / "emu" / "notes.txt", b"text")
    said = r"three' has no images of 'emu', 'gnu' from the list of classes mine; it has '.git', 'bus',"
    with pytest.raises(DataError, match=said):
        ingest(str(three), str(tmp_path / "out"), classes=listed("cat", "emu", "gnu"))
    source = source_of("parquet", tmp_path / "s")
    with pytest.raises(
        DataError, match=r"no images of 'class-0', .* and 25 more from .*; it has 'bus', 'cat', 'dog' instead"
    ):
        ingest(source, str(tmp_path / "out"), classes=listed(*(f"class-{i}" for i in range(30))))
    assert not (tmp_path / "out").exists()


def test_a_source_that_names_no_classes_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [encoded()], label=[0])
    with pytest.raises(DataError, match=r"read as parquet, names no classes, .* mine .*leave --classes out"):
        ingest(str(tmp_path / "x.parquet"), str(tmp_path / "out"), classes=listed("cat"))


# --- another list is other data --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_the_digest_goes_by_the_classes_and_not_by_the_list(kind: str, three: Path, tmp_path: Path) -> None:
    (three / "loose.png").unlink()
    source = f"imagefolder:{three}" if kind == "imagefolder" else source_of(kind, tmp_path / "s")
    lists = {"a": listed("cat", "dog"), "b": listed("dog", "cat", name="again"), "c": listed("bus", "cat"), "d": None}
    found = {name: ingest(source, str(tmp_path / name), classes=lists[name]).source.digest for name in lists}
    assert found["a"] == found["b"]
    assert len(set(found.values())) == 3


def test_a_folder_of_another_list_is_refused_unread(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    manifest = ingest(str(three), out, classes=listed("cat", "dog"))
    monkeypatch.setattr(ingest_module, "verify_parts", None)
    again = ingest(str(three), out, classes=listed("cat", "dog", name="again"))
    assert (again.source, again.shards) == (manifest.source, manifest.shards)
    monkeypatch.setattr(ingest_module, "read_content_digest", None)
    said = (
        r"the 2 classes on the list mine of .*, but this command asks for the 2 classes on the list other of .*; "
        r"they differ in 'bus', 'd"
    )
    with pytest.raises(DataError, match=said):
        ingest(str(three), out, classes=listed("cat", "bus", name="other"))
    with pytest.raises(DataError, match=r"but this command asks for all 3 classes of .*; they differ in 'bus'; choose"):
        ingest(str(three), out)


def test_a_killed_ingest_of_another_list_starts_over(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(done: int, *_: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    def ingest_to(name: str, *classes: str, **options: object) -> None:
        ingest(str(three), str(tmp_path / name), rows_per_shard=2, classes=listed(*classes), **options)

    verify_part, parts = verify._verify_part, list[int]()
    monkeypatch.setattr(verify, "_verify_part", lambda part, k, *rest: parts.append(k) or verify_part(part, k, *rest))
    with pytest.raises(KeyboardInterrupt):
        ingest_to("out", "cat", "dog", on_progress=kill)
    ingest_to("out", "cat", "dog")
    assert parts == [0, 1, 2]  # three parts for five files, each once
    with pytest.raises(KeyboardInterrupt):
        ingest_to("out2", "cat", "dog", on_progress=kill)
    ingest_to("out2", "cat", "bus")
    ingest_to("whole", "cat", "bus")
    assert contents(tmp_path / "out2") == contents(tmp_path / "whole")


# --- the numbers of images -------------------------------------------------------------------------------------


def counts_of(out: Path) -> dict[str, object]:
    """The check as it lies in summary and manifest, which agree."""
    summary, found = (json.loads((out / name).read_text()) for name in ("summary.json", "manifest.json"))
    assert summary["counts"] == found["counts"]
    return found["counts"]


def test_numbers_that_differ_are_kept_and_the_ingest_is_finished(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = ingest(str(three), str(out), classes=listed(cat=2, dog=3))
    assert manifest.num_images == 4
    assert manifest.count_warning == "class counts differ from mine: 4 images, 5 expected; dog: 2 images, 3 expected"
    assert counts_of(out) == {
        "list_name": "mine",
        "classes": 2,
        "counted": 2,
        "images": 4,
        "expected": 5,
        "differences": [{"name": "dog", "found": 2, "expected": 3}],
    }


def test_a_finished_ingest_is_checked_against_the_list_as_it_is_now(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = ingest(str(three), str(out), classes=listed(cat=2, dog=3))
    assert ingest(str(three), str(out), classes=listed(cat=2, dog=2)).count_warning == ""
    assert counts_of(out)["differences"] == []
    before = (out / "manifest.json").stat().st_mtime_ns
    again = ingest(str(three), str(out), classes=listed(cat=2, dog=2))
    assert (again.source, read_manifest(str(out))) == (first.source, again)
    assert (out / "manifest.json").stat().st_mtime_ns == before  # nothing new is not written


def test_the_check_outlives_a_call_without_the_list(tmp_path: Path) -> None:
    put(tmp_path / "one" / "cat" / "0.png", encoded())
    ingest(str(tmp_path / "one"), str(tmp_path / "out"), classes=listed(cat=2))
    assert "cat: 1 images, 2 expected" in ingest(str(tmp_path / "one"), str(tmp_path / "out")).count_warning


def test_a_quarantined_image_is_missing_from_its_class(three: Path, tmp_path: Path) -> None:
    put(three / "dog" / "2.png", b"bad")
    ingest(str(three), str(tmp_path / "out"), classes=listed(dog=3))
    assert counts_of(tmp_path / "out")["differences"] == [{"name": "dog", "found": 2, "expected": 3}]
