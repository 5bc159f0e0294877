"""Sorting images into folders: which go where, what files are called, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.data.pixel_options import AS_THEY_ARE
from pipeline.data.read import read_origins
from pipeline.errors import ConfigError, DataError
from pipeline.inference.assign import PARTS
from pipeline.inference.card import TRAINING_CLUSTERS
from pipeline.runs.assign import open_images
from pipeline.runs.file_names import BYTES, UniqueNames, cluster_folders, image_file_name, safe_name
from pipeline.runs.identity import SUMMARY, claim_folder, record_start
from pipeline.runs.names import set_names
from pipeline.runs.report import ASSIGNMENTS
from pipeline.runs.sort import TABLE, Choice, sort_images
from pipeline.storage import Folder
from tests.helpers.command_line import refused
from tests.helpers.images import encoded, put

PATHS = [f"{place}/{name}" for place in ("a", "b") for name in ("cat.png", "dog.jpg", "Cat.png", "x.png")]
ALL = Choice()


def table(paths: list[str], *, index: bool) -> pa.Table:
    """Cats in cluster 0, dogs in 1, x in 2; those of b are less typical, and b/x.png is an outlier."""
    clusters = {"cat.png": 0, "Cat.png": 0, "dog.jpg": 1, "x.png": 2}
    return pa.table(
        {
            "index": pa.array(range(len(paths)) if index else [None] * len(paths), pa.int64()),
            "path": paths,
            "cluster": [clusters[path.partition("/")[2]] for path in paths],
            "similarity": [0.9 if path.startswith("a") else 0.5 for path in paths],
            "margin": [0.4 if path.startswith("a") else 0.1 for path in paths],
            "outlier": [9.0 if path == "b/x.png" else 0.0 for path in paths],
        }
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, path in enumerate(PATHS):
        kind = "JPEG" if path.endswith("jpg") else "PNG"
        put(tmp_path / "photos" / path, encoded(number, kind))
    return tmp_path / "photos"


@pytest.fixture
def run(tmp_path: Path, photos: Path) -> Path:
    """What `digpro train` leaves of it, as far as it is looked at."""
    shards = tmp_path / "shards"
    manifest = ingest(f"imagefolder:{photos}", str(shards))
    config = load_config("digits", [f"data.path={shards}", f"storage={tmp_path}/runs", "name=run"])
    folder = claim_folder(config)
    record_start(folder, manifest)
    paths = [path for part in read_origins(str(shards)) for path in part.column("path").to_pylist()]
    pq.write_table(table(paths, index=True), f"{folder.root}/{ASSIGNMENTS}")
    folder.write(TRAINING_CLUSTERS, {"sizes": [4, 2, 2]})
    folder.write(SUMMARY, {})
    return Path(folder.path)


@pytest.fixture
def assigned(tmp_path: Path, photos: Path) -> Path:
    """What `digpro assign` leaves of it."""
    folder = Folder(str(tmp_path / "assigned")).make()
    (tmp_path / "assigned" / PARTS).mkdir()
    images = open_images(f"imagefolder:{photos}", AS_THEY_ARE)
    paths = [image.path for part in images.parts for image in part()]  # type: ignore[union-attr]
    pq.write_table(table(paths, index=False), tmp_path / "assigned" / PARTS / "part-00000.parquet")
    clusters = [{"cluster": number, "name": "car" if number == 1 else None} for number in range(3)]
    source, pixels = f"imagefolder:{photos}", AS_THEY_ARE.model_dump(mode="json")
    folder.write(SUMMARY, {"source": source, "pixels": pixels, "clusters": clusters})
    return tmp_path / "assigned"


def files(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*.*g"))}


def test_every_image_lies_in_the_folder_of_its_cluster(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = sort_images(str(run), str(out), ALL, echo=print)
    found = files(out)
    assert summary["folders"] == {"cluster 0": 4, "cluster 1": 2, "cluster 2": 2}
    assert sorted(found.values()) == sorted((photos / path).read_bytes() for path in PATHS)
    with (out / TABLE).open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["file"] for row in rows} == set(found)
    for row in rows:
        assert found[row["file"]] == (photos / row["path"]).read_bytes()
        assert row["file"].startswith(f"cluster {row['cluster']}/")
    assert len({name.casefold() for name in found}) == len(PATHS)  # also where case makes no difference


def test_clusters_of_one_name_share_a_folder(run: Path, tmp_path: Path) -> None:
    set_names(str(run), ["0=pets", "1=pets"])
    summary = sort_images(str(run), str(tmp_path / "out"), ALL)
    assert summary["folders"] == {"cluster 2": 2, "pets": 6}


def test_the_most_typical_images_of_each_folder(run: Path, tmp_path: Path) -> None:
    set_names(str(run), ["0=pets", "1=pets"])
    sort_images(str(run), str(tmp_path / "top"), Choice(top=3))
    with (tmp_path / "top" / TABLE).open() as stream:
        chosen = [row["path"] for row in csv.DictReader(stream)]
    assert sorted(chosen) == ["a/Cat.png", "a/cat.png", "a/dog.jpg", "a/x.png", "b/x.png"]
    summary = sort_images(str(run), str(tmp_path / "sure"), Choice(top=3, min_margin=0.2))
    assert summary["folders"] == {"cluster 2": 1, "pets": 3}


def test_outliers_apart(assigned: Path, tmp_path: Path) -> None:
    sort_images(str(assigned), str(tmp_path / "out"), Choice(outliers="apart"))
    assert [file for file in files(tmp_path / "out") if "x" in file] == ["cluster 2/outliers/x.png", "cluster 2/x.png"]
    with pytest.raises(ConfigError, match="--outliers beside is not known; give among or apart"):
        sort_images(str(assigned), str(tmp_path / "other"), Choice(outliers="beside"))


def test_links_lead_to_the_originals(assigned: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        sort_images(str(assigned), str(out), ALL, links=True)
        (out / SUMMARY).unlink()  # as after a kill
    links = [file for file in out.rglob("*.*g") if file.is_symlink()]
    assert {os.readlink(link) for link in links} == {str(photos / path) for path in PATHS}
    assert (out / "car").is_dir()


def test_links_and_copies_are_named_by_what_they_lead_to(assigned: Path, photos: Path, tmp_path: Path) -> None:
    """An ingest stores a JPEG with an EXIF rotation upright, as PNG."""
    upright = Image.Exif()
    upright[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (7, 3)).save(photos / "a" / "dog.jpg", exif=upright)
    for links, expected in ((True, ("car/dog.jpg", "7", "3")), (False, ("car/dog.png", "3", "7"))):
        out = tmp_path / f"links {links}"
        sort_images(str(assigned), str(out), ALL, links=links)
        row = next(row for row in csv.DictReader((out / TABLE).open()) if row["path"] == "a/dog.jpg")
        assert (row["file"], row["width"], row["height"]) == expected
        assert image_file_name(row["file"], (out / row["file"]).read_bytes()) == Path(row["file"]).name


def test_an_image_that_could_not_be_read_has_no_row_and_costs_no_other(
    assigned: Path, photos: Path, tmp_path: Path
) -> None:
    part = assigned / PARTS / "part-00000.parquet"
    rows = pq.read_table(part)
    pq.write_table(rows.filter(pa.compute.not_equal(rows.column("path"), "a/x.png")), part)
    summary = sort_images(str(assigned), str(tmp_path / "out"), ALL)
    assert summary["folders"] == {"car": 2, "cluster 0": 4, "cluster 2": 1}


def test_images_that_are_gone_are_named(assigned: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "b" / "dog.jpg").unlink()
    with pytest.raises(DataError, match=r"is missing or has moved in .* since it was assigned"):
        sort_images(str(assigned), str(tmp_path / "out"), ALL)


def test_images_that_have_moved(assigned: Path, photos: Path, tmp_path: Path) -> None:
    photos.rename(tmp_path / "moved")
    with pytest.raises(DataError):
        sort_images(str(assigned), str(tmp_path / "out"), ALL)
    summary = sort_images(str(assigned), str(tmp_path / "out"), ALL, source=f"imagefolder:{tmp_path}/moved")
    assert summary["images"] == 8


def test_the_same_call_shows_what_is_there_and_another_is_refused(run: Path, tmp_path: Path) -> None:
    out, said = str(tmp_path / "out"), list[str]()
    first = sort_images(str(run), out, ALL)
    assert sort_images(str(run), out, ALL, echo=said.append) == first
    assert said == [f"{out} already holds these images"]
    with pytest.raises(ConfigError, match="was sorted with other options: top None, now 3; choose another"):
        sort_images(str(run), out, Choice(top=3))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(ConfigError, match=r"holds other files \('mine.txt', ...\); choose a new folder"):
        sort_images(str(run), str(tmp_path / "full"), ALL)


def test_tables_for_other_tools(assigned: Path, tmp_path: Path) -> None:
    """Once, each was imported by the tool itself: Label Studio, FiftyOne and pycocotools (docs/using.md)."""
    written = {}
    for name in ("label-studio", "fiftyone", "coco-classification"):
        summary = sort_images(str(assigned), str(tmp_path / name), ALL, table=name)
        written |= {Path(place).name: Path(place).read_text() for place in summary["outputs"]["tables"][1:]}
    paths = sorted(files(tmp_path / "fiftyone"))
    titles = {path: path.partition("/")[0] for path in paths}

    tasks = json.loads(written["label-studio.json"])
    shown = {unquote(task["data"]["image"].removeprefix("/data/local-files/?d=label-studio/")): task for task in tasks}
    choices = {path: task["predictions"][0]["result"][0]["value"]["choices"][0] for path, task in shown.items()}
    assert choices == titles
    assert re.findall('<Choice value="(.*)"/>', written["label-studio.xml"]) == ["cluster 0", "car", "cluster 2"]

    labels = json.loads(written["fiftyone.json"])["labels"]
    assert {path: labels[path[:-4]]["label"] for path in paths} == titles

    coco = json.loads(written["coco.json"])
    names = {category["id"]: category["name"] for category in coco["categories"]}
    category = {entry["image_id"]: names[entry["category_id"]] for entry in coco["annotations"]}
    assert {image["file_name"]: category[image["id"]] for image in coco["images"]} == titles
    assert {(image["width"], image["height"]) for image in coco["images"]} == {(6, 5)}


def test_addresses_of_label_studio_are_quoted(assigned: Path, photos: Path, tmp_path: Path) -> None:
    sort_images(str(assigned), str(tmp_path / "R&D #2"), ALL, table="label-studio")
    tasks = json.loads((tmp_path / "R&D #2" / "label-studio.json").read_text())
    found = {parse_qs(urlsplit(task["data"]["image"]).query)["d"][0] for task in tasks}
    assert found == {f"R&D #2/{file}" for file in files(tmp_path / "R&D #2")}


def test_an_unknown_format_is_refused(assigned: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--format coco is not one of csv, label-studio, fiftyone, coco-classification"
    ):
        sort_images(str(assigned), str(tmp_path / "out"), ALL, table="coco")


def test_the_command_shows_its_folders_and_tables_also_a_second_time(digpro, run: Path, tmp_path: Path) -> None:
    set_names(str(run), ["0=pets"])
    out = tmp_path / "out"
    command = ["sort", run, out, "--top", 3, "--format", "fiftyone"]
    shown = (
        "        2  cluster 1\n        2  cluster 2\n        3  pets\n"
        f"table: {out}/images.csv\ntable: {out}/fiftyone.json\n"
    )
    status, printed, err = digpro(*command)
    assert (status, err) == (0, "")
    assert "sort: 7/7 images" in printed
    assert printed.endswith(f"\n{shown}")
    assert digpro(*command) == (0, f"{out} already holds these images\n{shown}", "")


CATS, DOGS = ["a/Cat.png", "a/cat.png"], ["a/dog.jpg", "b/dog.jpg"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--top 2", {"car": DOGS, "cluster 0": CATS, "cluster 2": ["a/x.png", "b/x.png"]}),
        ("--min-margin 0.2", {"car": DOGS[:1], "cluster 0": CATS, "cluster 2": ["a/x.png"]}),
        ("--min-margin 0.2 --top 1", {"car": DOGS[:1], "cluster 0": [CATS[0]], "cluster 2": ["a/x.png"]}),
        (
            "--top 2 --outliers apart",
            {"car": DOGS, "cluster 0": CATS, "cluster 2": ["a/x.png"], "cluster 2/outliers": ["b/x.png"]},
        ),
        ("--min-margin 0.5", {}),
    ],
)
@pytest.mark.parametrize("links", [False, True])
def test_options_of_the_command_choose_images_to_copy_or_link(
    digpro, assigned: Path, photos: Path, tmp_path: Path, options: str, expected: dict[str, list[str]], links: bool
) -> None:
    out = tmp_path / "out"
    status, _, err = digpro("sort", assigned, out, *options.split(), *(["--links"] if links else []))
    assert (status, err) == (0, "")
    found: dict[str, list[str]] = {}
    with (out / TABLE).open() as stream:
        for row in csv.DictReader(stream):
            found.setdefault(row["file"].rpartition("/")[0], []).append(row["path"])
            file = out / row["file"]
            assert file.read_bytes() == (photos / row["path"]).read_bytes()
            assert file.is_symlink() == links
    assert {folder: sorted(paths) for folder, paths in found.items()} == expected
    assert len(files(out)) == sum(map(len, expected.values()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--top 0", ["Usage: digpro sort", "Invalid value for '--top'"]),
        ("--min-margin x", ["Usage: digpro sort", "Invalid value for '--min-margin'"]),
        ("--min-margin nan", ["error: --min-margin nan is not between 0 and 2; give a difference between two cosines"]),
        ("--min-margin 10", ["error: --min-margin 10 is not between 0 and 2; give"]),
        ("--min-margin -0.1", ["error: --min-margin -0.1 is not between 0 and 2; give"]),
        ("--outliers beside", ["error: --outliers beside is not known; give among or apart"]),
        ("--format coco", ["error: --format coco is not one of csv, label-studio, fiftyone, coco-classification"]),
        ("--source imagefoldr:x", ["error: ", "'imagefoldr:x'", "imagefolder"]),
    ],
)
def test_wrong_options_of_the_command_are_refused(
    digpro, assigned: Path, tmp_path: Path, options: str, said: list[str]
) -> None:
    refused(digpro("sort", assigned, tmp_path / "out", *options.split()), *said)
    assert not (tmp_path / "out").exists()


def test_folders_that_the_command_cannot_use_are_named(digpro, run: Path, photos: Path, tmp_path: Path) -> None:
    refused(digpro("sort", tmp_path, tmp_path / "out"), f"error: {tmp_path} holds neither a finished run nor")
    refused(digpro("sort", run, photos), f"error: {photos} holds other files ('a', ...); choose a new folder")
    photos.rename(tmp_path / "moved")
    refused(
        digpro("sort", run, tmp_path / "out", "--links"), "error: --links needs a local folder", "leave --links out"
    )


def test_what_is_neither_run_nor_assignment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"holds neither a finished run nor an assignment; give a folder with assignments"
    ):
        sort_images(str(tmp_path), str(tmp_path / "out"), ALL)


def test_links_of_images_in_shards_only_are_refused(run: Path, photos: Path, tmp_path: Path) -> None:
    photos.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="--links needs a local folder of image files"):
        sort_images(str(run), str(tmp_path / "out"), ALL, links=True)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("truck", "truck"),
        ("a/b\\c:d", "a_b_c_d"),
        ("..", "_"),
        ("", "_"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("tab\there", "tab_here"),
        (" spaced. ", "spaced"),
        ("Straße 猫", "Straße 猫"),
        ("é" * 200, "é" * (BYTES // 2)),
    ],
)
def test_names_that_every_file_system_takes(text: str, name: str) -> None:
    assert safe_name(text) == name


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        ("a/b.jpg", "JPEG", "b.jpg"),
        ("a/b.JPEG", "JPEG", "b.JPEG"),
        ("a/b.png", "JPEG", "b.jpg"),  # the content decides
        ("scan.v2", "PNG", "scan.v2.png"),
        ("file.parquet row 3", "PNG", "file.parquet row 3.png"),
        ("", "PNG", "_.png"),
        (".png", "PNG", "_.png"),
    ],
)
def test_names_of_images_say_what_they_are(path: str, kind: Any, name: str) -> None:
    assert image_file_name(path, encoded(0, kind)) == name


def test_names_are_told_apart() -> None:
    names = UniqueNames()
    assert [names.give(name, number) for number, name in enumerate(["a.png", "A.png", "a.png", "b"])] == [
        "a.png",
        "A~1.png",
        "a~2.png",
        "b",
    ]
    names = UniqueNames()
    assert [names.give(name, 2) for name in ("a~2.png", "a.png", "a.png")] == ["a~2.png", "a.png", "a~2~2.png"]
    stems = UniqueNames(stems=True)
    assert [stems.give(name, 3) for name in ("x.jpg", "X.png", "x.y.png", "x")] == [
        "x.jpg",
        "X~3.png",
        "x.y.png",
        "x~3~3",
    ]
    assert cluster_folders(12, {1: "a/b", 2: "a_b", 3: "a/b", 4: "cluster 00"})[:5] == [
        "cluster 00",
        "a_b",
        "a_b~2",
        "a_b",
        "cluster 00~4",
    ]
