"""Lists of classes: those of the package, a user's own, and the check of the numbers of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.loading import load_config, preset_names
from pipeline.data.class_lists import ClassList, class_list_names, load_class_list
from pipeline.data.counts import CountCheck, check_counts
from pipeline.errors import DataError

SIZES = {  # classes and images, as the data sets are published
    "cifar10": (10, 60_000),
    "cifar20": (20, 60_000),
    "imagenet-10": (10, 13_000),
    "imagenet-dogs": (15, 19_500),
    "rsod": (4, 976),
    "siri-whu": (12, 2_400),
    "stl10": (10, 13_000),
    "tiny-imagenet": (200, 100_000),
    "uc-merced": (21, 2_100),
}


def test_the_lists_of_the_package_have_the_published_sizes() -> None:
    found = {name: list(load_class_list(name).images.values()) for name in class_list_names()}
    assert {name: (len(counts), sum(count or 0 for count in counts)) for name, counts in found.items()} == SIZES


@pytest.mark.parametrize("name", class_list_names())
def test_every_list_has_a_preset_with_its_number_of_clusters(name: str) -> None:
    for preset in {name, f"{name}-strong"} & set(preset_names()):
        assert load_config(preset).method.num_clusters == SIZES[name][0]


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    """As editors write it: with a byte order mark, blanks, Windows' ends of lines, and blank lines."""
    text = "# mine\r\ntennis court \r\n\r\ncat\t1300\tFelis catus\r\ndog\t\t\r\n"
    (tmp_path / "mine.txt").write_text(text, encoding="utf-8-sig")
    found = load_class_list(str(tmp_path / "mine.txt"))
    assert found.images == {"tennis court": None, "cat": 1300, "dog": None}
    assert found.titles == {"cat": "Felis catus"}
    assert load_class_list("mine.txt", str(tmp_path)).images == found.images
    assert load_class_list((tmp_path / "mine.txt").as_uri(), "elsewhere").images == found.images


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# nothing\n\n", r"mine.txt' is empty; write the name of one class in each line"),
        (b"cat\ndog\ncat\n", r"mine.txt' names 'cat' a second time in line 3; remove one"),
        (b"cat\tmany\n", r"line 1 of .*mine.txt' has 'many' after the tab; write the number of images of 'cat'"),
        (b"cat\t0\n", r"has '0' after the tab"),
        (b"\tcat\n", r"line 1 of .* starts with a tab"),
        (b"\xff\xfe", r"mine.txt' cannot be read .*; give a UTF-8 text"),
    ],
)
def test_faults_of_a_list_are_named(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_class_list(str(tmp_path / "mine.txt"))


def test_an_unknown_list_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"'imagenet10' is neither .*did you mean 'imagenet-10'.*cifar10, cifar20,.*nor"
    ):
        load_class_list("imagenet10")
    with pytest.raises(DataError, match="cannot be read"):
        load_class_list(str(tmp_path))


def check(found: list[int], listed: list[int | None], *, earlier: bool = False) -> CountCheck:
    images = {f"class-{i}": count for i, count in enumerate(found)}
    classes = ClassList(name="mine", images={f"class-{i}": count for i, count in enumerate(listed)})
    return check_counts(classes, None if earlier else images, sum(found))


def test_numbers_that_agree() -> None:
    agreed = check([1000, 300], [1000, 300])
    assert (str(agreed), agreed.warning) == ("1,300 images in 2 classes, as in mine", "")
    some = str(check([5, 7], [None, 7]))
    assert some == "12 images in 2 classes; mine gives the number of images for 1 of them, and all agree"
    assert "gives the number of images for 0" in str(check([5, 7], [None, None]))


def test_numbers_that_differ_are_named() -> None:
    two = check([1300, 1298, 0], [1300, 1300, None])
    assert str(two).splitlines() == [
        "class counts differ from mine: 2,598 images",
        "  class-1: 1,298 images, 1,300 expected",
        "  class-2: 0 images, at least 1 expected",
    ]
    assert two.warning == (
        "class counts differ from mine: 2,598 images; class-1: 1,298 images, 1,300 expected; "
        "class-2: 0 images, at least 1 expected"
    )
    many = check([1] * 15, [2] * 15)
    lines = str(many).splitlines()
    assert lines[0] == "class counts differ from mine: 15 images, 30 expected"
    assert (len(lines), lines[-1]) == (12, "  and 5 more classes, which the manifest lists")
    assert many.warning.endswith("class-2: 1 images, 2 expected; and 12 more classes, which the manifest lists")


def test_an_ingest_of_an_earlier_version_is_compared_as_a_whole() -> None:
    before = check([1300, 1298], [1300, 1300], earlier=True)
    assert str(before).endswith("all classes together: 2,598 images, 2,600 expected")
    assert check([1300, 1298], [1300, None], earlier=True).differences == []
