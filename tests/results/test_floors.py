"""Floors of pixels and of frozen features, on the bundled digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from benchmarks.results import floors
from pipeline.build import settle_images
from pipeline.clustering.kmeans import KMeansResult, spherical_kmeans
from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.data.read import read_labels
from pipeline.errors import DataError
from tests.helpers.cached_features import frozen_config, make_cache


def test_kmeans_on_pixels_is_scored_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(floors, "RUNS", 2)
    manifest = ingest("digits", str(tmp_path / "digits"))
    config = settle_images(load_config("digits", [f"data.path={tmp_path}/digits"]))
    rows = floors.view_pixels(config, manifest)
    assert rows.shape == (1797, 3 * 16 * 16)
    labels = read_labels(config.data.path)
    assert labels is not None
    zero, one = (rows[labels == digit].reshape(-1, 3, 16, 16)[:, 0, 6:10, 7:9].mean() for digit in (0, 1))
    assert one > zero + 1  # rows are in order of index: a 1 is bright in the middle, a 0 is not
    floor = floors.pixel_floor(config)
    assert (floor.what, floor.runs) == ("k-means on 16 x 16 pixels", 2)
    assert floor.scores["acc"][0] == pytest.approx(0.79, abs=0.03)  # known for these pixels
    assert np.isfinite(list(floor.scores.values())).all()


def test_runs_of_kmeans_on_features_share_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, seeds = frozen_config(tmp_path), list[int]()
    made = make_cache(config)[:2]

    def kmeans(features: torch.Tensor, clusters: int, *, restarts: int, seed: int) -> KMeansResult:
        seeds.extend(range(seed, seed + restarts))
        return spherical_kmeans(features, clusters, restarts=1, seed=seed)

    monkeypatch.setattr(floors, "connect", lambda: None)
    monkeypatch.setattr(floors, "ensure_cache", lambda config, manifest: made)
    monkeypatch.setattr(floors, "spherical_kmeans", kmeans)
    monkeypatch.setattr(floors, "read_labels", lambda folder: np.arange(200) % 10)
    floor = floors.feature_floor(config)
    assert len(seeds) == len(set(seeds)) == floors.RUNS * floors.STARTS
    assert floor.what.endswith(f"the mean of {made[1].views} views")


def test_images_without_classes_have_no_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "read_labels", lambda folder: None)
    config = load_config("digits", [f"data.path={tmp_path}/mine"])
    with pytest.raises(DataError, match="mine has no classes, and a row of results needs scores"):
        floors.scores_over_seeds(lambda seed: np.zeros(4), config)
