"""Comparing runs: which clusters come again, which images move, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from pipeline.collectives import RowRange
from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.data.shards import Manifest, read_manifest
from pipeline.errors import ConfigError, DataError
from pipeline.inference.run_features import write_features
from pipeline.runs.compare import AGREEMENT, MOVED, PAGE, SUMMARY, compare
from pipeline.runs.identity import claim_folder, record_start
from pipeline.runs.names import NAMES
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
    page = (tmp_path / "out" / PAGE).read_text()
    assert "2 images (8.3%) are in a different cluster" in page
    assert "2 images of cluster 2: 2 moved" in page


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
