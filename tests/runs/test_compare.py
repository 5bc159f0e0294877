"""Comparing runs: which clusters come again, which images move, and what cannot be compared."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from pipeline.clustering.agreement import flows
from pipeline.collectives import RowRange
from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.data.shards import Manifest, read_manifest
from pipeline.errors import ConfigError, DataError
from pipeline.inference.run_features import write_features
from pipeline.report.comparison import Comparison
from pipeline.runs import compare as module
from pipeline.runs.compare import (
    AGREEMENT,
    IMAGES_OF_A_CLUSTER,
    MOVED,
    PAGE,
    SUMMARY,
    address_of_atlas,
    choose_moved,
    compare,
    short_names,
)
from pipeline.runs.identity import claim_folder, record_start
from pipeline.runs.names import NAMES
from pipeline.runs.report import ATLAS
from pipeline.storage import Folder
from tests.helpers.command_line import refused
from tests.helpers.images import encoded, put

FIRST = [0] * 8 + [1] * 8 + [2] * 8
OTHER = [2] * 8 + [0] * 8 + [1] * 6 + [0] * 2  # the same, but for two images
THIRD = [1] * 8 + [0] * 8 + [2] * 7 + [0]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images")
    for number in range(len(FIRST)):
        put(folder / "photos" / f"{number}.png", encoded(number))
    ingest(f"imagefolder:{folder}/photos", str(folder / "shards"))
    return str(folder / "shards")


def make_run(place: Path, shards: str, clusters: list[int], manifest: Manifest | None = None) -> str:
    """A run whose last E-step found these clusters."""
    config = load_config("digits", [f"data.path={shards}", f"storage={place.parent}", f"name={place.name}"])
    folder = claim_folder(config)
    record_start(folder, manifest or read_manifest(shards))
    centers = torch.eye(3)
    write_features(folder, centers[clusters], centers, RowRange(0, len(clusters), len(clusters)))
    return str(place)


def page_data(page: Path) -> dict[str, Any]:
    """The values in the page of a comparison."""
    found = re.search(r'id="comparison-data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def column(data: dict[str, Any], name: str, kind: type = np.int32) -> list[Any]:
    return np.frombuffer(base64.b64decode(data["columns"][name]), kind).tolist()


def test_runs_are_compared_with_the_first(shards: str, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run{n}", shards, found) for n, found in enumerate((FIRST, OTHER, THIRD))]
    (tmp_path / "run0" / NAMES).write_text("1: ships\n")
    summary = compare(runs, str(tmp_path / "out"))
    labels = [FIRST, OTHER, THIRD]
    for a in range(3):
        for b in range(3):
            assert summary["ari"][a][b] == pytest.approx(adjusted_rand_score(labels[a], labels[b]))
            assert summary["nmi"][a][b] == pytest.approx(normalized_mutual_info_score(labels[a], labels[b]))
    assert [cluster["name"] for cluster in summary["clusters"]] == ["cluster 0", "ships", "cluster 2"]
    stability = [1, (8 / 10 + 8 / 9) / 2, (6 / 8 + 7 / 8) / 2]
    assert [cluster["stability"] for cluster in summary["clusters"]] == pytest.approx(stability)
    assert [cluster["moved"] for cluster in summary["clusters"]] == [0, 0, 2]
    assert json.loads((tmp_path / "out" / SUMMARY).read_text()) == summary

    moved = pq.read_table(tmp_path / "out" / MOVED)
    assert moved.column("index").to_pylist() == [22, 23]
    assert moved.column("elsewhere").to_pylist() == [1, 2]
    assert [moved.column(f"cluster_{n}").to_pylist() for n in range(3)] == [[2, 2], [1, 1], [2, 1]]
    agreement = pq.read_table(tmp_path / "out" / AGREEMENT)
    assert sorted(agreement.column("path").to_pylist()) == sorted(f"{n}.png" for n in range(len(FIRST)))
    assert agreement.column("cluster").to_pylist() == [*FIRST[:23], 1]  # two of three put the last image there
    assert agreement.column("agreement").to_pylist() == pytest.approx([1] * 22 + [2 / 3] * 2)
    assert summary["agreement"] == pytest.approx((22 + 4 / 3) / 24)


def test_the_page_has_matches_flows_and_the_images_that_moved(shards: str, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run{n}", shards, found) for n, found in enumerate((FIRST, OTHER, THIRD))]
    (tmp_path / "run0" / NAMES).write_text("1: ships\n")
    (tmp_path / "run2" / NAMES).write_text("0: boats\n")
    (tmp_path / "run1" / ATLAS).write_text("an atlas")
    compare(runs, str(tmp_path / "out"))
    data = page_data(tmp_path / "out" / PAGE)
    first, other, third = data["runs"]
    assert [run["name"] for run in data["runs"]] == ["run0", "run1", "run2"]
    assert [run["atlas"] for run in data["runs"]] == ["", "../run1/atlas.html", ""]
    assert (first["names"], third["names"]) == ({"1": "ships"}, {"0": "boats"})
    assert (first["match"], first["sizes"], first["common"]) == ([0, 1, 2], [8, 8, 8], [8, 8, 8])
    assert (other["match"], other["sizes"], other["common"]) == ([1, 2, 0], [10, 6, 8], [8, 6, 8])
    assert (third["match"], third["sizes"], third["common"]) == ([1, 0, 2], [9, 8, 7], [8, 8, 7])
    assert [(run["flows"], run["numFlows"]) for run in data["runs"]] == [([], 0), ([[2, 0, 2]], 1), ([[2, 0, 1]], 1)]
    assert (data["images"], data["moved"]) == (24, [0, 0, 2])
    assert data["agreement"] == pytest.approx((22 + 4 / 3) / 24)

    indices = column(data, "index")
    assert indices == [23, 22]  # more runs disagree on 23
    assert data["paths"] == pq.read_table(tmp_path / "out" / AGREEMENT).column("path").take(indices).to_pylist()
    assert np.reshape(column(data, "clusters"), (3, 2)).tolist() == [[2, 2], [0, 0], [0, 2]]
    assert column(data, "elsewhere") == [2, 1]
    assert column(data, "agreement", np.float32) == pytest.approx([2 / 3] * 2)


def test_pictures_are_those_of_their_images(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Comparison] = []
    monkeypatch.setattr(module, "comparison_page", lambda found: seen.append(found) or "")
    runs = [make_run(tmp_path / f"run{n}", shards, found) for n, found in enumerate((FIRST, OTHER, THIRD))]
    compare(runs, str(tmp_path / "out"))
    (found,) = seen
    for path, picture in zip(found.sample.path, found.sample.pictures.tiles, strict=True):
        value = int(path.removesuffix(".png"))  # the image's colour is (value, 0, 255 - value)
        middle = picture[picture.shape[0] // 2, picture.shape[1] // 2]
        assert middle.tolist() == [value, 0, 255 - value]


def test_a_page_holds_a_bounded_number_of_images_of_each_cluster() -> None:
    clusters = np.array([0] * 100 + [1] * 3 + [2] * 100, np.int32)
    elsewhere = np.ones(len(clusters), np.int32)
    elsewhere[[50, 150]] = 2
    elsewhere[[0, 200]] = 0
    chosen = choose_moved(clusters, elsewhere)
    assert np.bincount(clusters[chosen]).tolist() == [IMAGES_OF_A_CLUSTER, 3, IMAGES_OF_A_CLUSTER]
    assert chosen[:3].tolist() == [50, 1, 2]  # by cluster, and those first that most runs put elsewhere
    assert elsewhere[chosen].all()


def test_clusters_share_what_a_page_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMAGES", 10)
    clusters = np.array([0] * 100 + [1] * 2 + [2] * 50, np.int32)
    chosen = choose_moved(clusters, np.ones(len(clusters), np.int32))
    assert np.bincount(clusters[chosen]).tolist() == [4, 2, 4]
    assert np.array_equal(clusters[chosen], np.sort(clusters[chosen]))
    crowded = np.repeat(np.arange(20, dtype=np.int32), np.arange(1, 21))
    chosen = choose_moved(crowded, np.ones(len(crowded), np.int32))
    assert crowded[chosen].tolist() == list(range(10, 20))  # of which most moved


def test_flows_are_pairs_of_clusters_that_are_not_matched() -> None:
    table = csr_array([[5, 4, 0, 1], [0, 6, 2, 0]])
    assert flows(table, np.array([0, 1, -1, -1])).tolist() == [[0, 1, 4], [1, 2, 2], [0, 3, 1]]
    assert flows(csr_array([[3, 0], [0, 2]]), np.array([0, 1])).shape == (0, 3)


def test_runs_are_told_apart_by_as_much_of_their_paths_as_it_takes() -> None:
    assert short_names(["/runs/a", "/runs/b"]) == ["a", "b"]
    assert short_names(["/x/k4/seed-0", "/x/k8/seed-0", "/x/k8/seed-1"]) == ["k4/seed-0", "k8/seed-0", "k8/seed-1"]
    assert short_names(["/runs/a", "/runs/a"]) == ["a", "a"]


def test_an_atlas_is_linked_where_page_and_run_can_be_opened_from_one_disk(tmp_path: Path) -> None:
    run, out = Folder(f"{tmp_path}/runs/50% #1"), Folder(f"{tmp_path}/out").make()
    assert address_of_atlas(run, out) == ""
    run.make().write_bytes(ATLAS, b"")
    assert address_of_atlas(run, out) == "../runs/50%25%20%231/atlas.html"
    assert address_of_atlas(run, Folder("mock:///bucket/out")) == ""


def test_runs_that_agree_have_nothing_that_moved(shards: str, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run{n}", shards, FIRST) for n in range(2)]
    summary = compare(runs, str(tmp_path / "out"))
    assert summary["moved"] == 0
    assert np.array(summary["ari"]).tolist() == [[1, 1], [1, 1]]
    assert pq.read_table(tmp_path / "out" / MOVED).num_rows == 0


def test_runs_of_different_numbers_of_clusters(shards: str, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "two", shards, [min(c, 1) for c in FIRST]), make_run(tmp_path / "three", shards, FIRST)]
    summary = compare(runs, str(tmp_path / "out"))
    assert [cluster["moved"] for cluster in summary["clusters"]] == [0, 8]
    assert [cluster["stability"] for cluster in summary["clusters"]] == [1, 0.5]


def test_what_cannot_be_compared_is_named(shards: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", shards, FIRST)
    with pytest.raises(ConfigError, match="1 run is given; give two or more"):
        compare([run], str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="holds no run"):
        compare([run, str(tmp_path / "nothing")], str(tmp_path / "out"))
    manifest = read_manifest(shards)
    source = manifest.source.model_copy(update={"digest": "other", "source": "elsewhere"})
    other = make_run(tmp_path / "other", shards, FIRST, manifest.model_copy(update={"source": source}))
    with pytest.raises(
        ConfigError, match=r"other are elsewhere, but those of run are .*; give runs on the same images"
    ):
        compare([run, other], str(tmp_path / "out"))
    halves = [shard.model_copy(update={"rows": 12, "groups": (12,)}) for shard in manifest.shards * 2]
    cut = make_run(tmp_path / "cut", shards, FIRST, manifest.model_copy(update={"shards": halves}))
    with pytest.raises(ConfigError, match=r"cut are those of run in other shards, so that their indices differ"):
        compare([run, cut], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_run_that_has_not_ended_says_so(shards: str, tmp_path: Path) -> None:
    runs: list[Any] = [make_run(tmp_path / "run", shards, FIRST)]
    config = load_config("digits", [f"data.path={shards}", f"storage={tmp_path}", "name=begun"])
    record_start(claim_folder(config), read_manifest(shards))
    with pytest.raises(DataError, match="holds no features of its images, although every finished run stores them"):
        compare([*runs, str(tmp_path / "begun")], str(tmp_path / "out"))


def test_the_command_shows_scores_clusters_and_files(digpro, shards: str, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run{n}", shards, found) for n, found in enumerate((FIRST, OTHER, THIRD))]
    (tmp_path / "run0" / NAMES).write_text("1: ships\n")
    out = tmp_path / "out"
    status, printed, err = digpro("compare", *runs, "--out", out)
    assert (status, err) == (0, "")
    scores = [
        (adjusted_rand_score(FIRST, found), normalized_mutual_info_score(FIRST, found)) for found in (OTHER, THIRD)
    ]
    assert printed.splitlines() == [
        "2 of 24 images are in another cluster in at least one other run",
        *(f"  ARI {ari:.3f}  NMI {nmi:.3f}  {run}" for (ari, nmi), run in zip(scores, runs[1:], strict=True)),
        "  stability 0.81        8 images  cluster 2",  # the least stable first
        "  stability 0.84        8 images  ships",
        "  stability 1.00        8 images  cluster 0",
        "on average 97.2% of the runs agree on an image",
        f"page:      {out}/{PAGE}",
        f"agreement: {out}/{AGREEMENT}",
        f"moved:     {out}/{MOVED}",
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted([PAGE, AGREEMENT, MOVED, SUMMARY])


def test_what_the_command_cannot_compare_is_refused(digpro, shards: str, tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run", shards, FIRST), tmp_path / "out"
    refused(digpro("compare", run, run), "Usage: digpro compare", "Missing option '--out'")
    refused(digpro("compare", "--out", out), "Usage: digpro compare", "Missing argument")
    refused(digpro("compare", run, "--out", out), "error: 1 run is given; give two or more")
    refused(digpro("compare", run, tmp_path / "none", "--out", out), f"error: {tmp_path}/none holds no run; give")
    config = load_config("digits", [f"data.path={shards}", f"storage={tmp_path}", "name=begun"])
    record_start(claim_folder(config), read_manifest(shards))
    refused(digpro("compare", run, tmp_path / "begun", "--out", out), "begun holds no features of its images")
    assert not out.exists()
