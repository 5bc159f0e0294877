"""Images that are chosen by name: one, a list of them, or those that match a pattern."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.sources import Row, Source, open_source
from pipeline.errors import DataError
from tests.helpers.images import encoded

FILES = ("a/1.png", "a/2.png", "a/deep/3.png", "b/1.png", "b/[x].png", "b/notes.csv", "b/.hidden.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"x,y" if name.endswith(".csv") else encoded())
    return tmp_path / "photos"


def names(source: Source) -> list[str]:
    return sorted(entry.path for part in source.parts for entry in part() if isinstance(entry, Row))


@pytest.mark.parametrize("begin", ["", "imagefolder:"])
def test_one_image_is_a_source(photos: Path, begin: str) -> None:
    source = open_source(f"{begin}{photos}/a/1.png", 10)
    assert (source.kind, names(source), source.location) == ("imagefolder", ["1.png"], None)


@pytest.mark.parametrize("begin", ["", "imagefolder:"])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/*.png", ["1.png", "2.png"]),
        ("a/?.png", ["1.png", "2.png"]),
        ("*/1.png", ["a/1.png", "b/1.png"]),
        ("[!a]/1.png", ["b/1.png"]),
        ("**/*.png", ["a/1.png", "a/2.png", "a/deep/3.png", "b/1.png", "b/[x].png"]),
        ("**.png", ["a/1.png", "a/2.png", "a/deep/3.png", "b/1.png", "b/[x].png"]),
        ("[a]", ["a/1.png", "a/2.png", "a/deep/3.png"]),
        ("b/[x].png", ["[x].png"]),  # a name that exists is no pattern
    ],
)
def test_a_pattern_takes_what_matches(photos: Path, begin: str, pattern: str, expected: list[str]) -> None:
    assert names(open_source(f"{begin}{photos}/{pattern}", 10)) == expected


def test_a_relative_pattern(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos / "a")
    assert names(open_source("*.png", 10)) == ["1.png", "2.png"]
    assert names(open_source("1.png", 10)) == ["1.png"]


def test_a_list_takes_its_paths_and_says_what_is_missing(photos: Path, tmp_path: Path) -> None:
    listed = ["# mine", "photos/a/2.png", "", f"{photos}/b/1.png", "photos/a/2.png", "photos/none.png"]
    (tmp_path / "list.txt").write_text("\n".join([*listed, "./photos/b/1.png"]))
    source = open_source(str(tmp_path / "list.txt"), 10)
    assert names(source) == ["a/2.png", "b/1.png"]
    assert [(entry.path, entry.reason) for entry in source.quarantined] == [
        ("none.png", "cannot be read: there is no such file")
    ]
    assert [(entry.path, entry.rule) for entry in source.left_out] == [
        ("a/2.png", "listed twice in list.txt"),
        ("b/1.png", "listed twice in list.txt"),
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("*.gif", r"no file matches '\S+\*\.gif'; correct the pattern, or give the folder"),
        (
            "b/notes.csv",
            r"is a file but not an image \(text that starts with 'x,y', .*\); give an image, .* a \.txt file",
        ),
        ("empty.txt", r"lists no files; write one path per line"),
        ("none.png", r"is neither a kind of source nor an existing path"),
    ],
)
def test_what_chooses_nothing_is_refused(photos: Path, path: str, message: str) -> None:
    (photos / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match=message):
        open_source(f"{photos}/{path}", 10)
