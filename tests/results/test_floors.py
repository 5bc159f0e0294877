"""The floor of pixels, on the bundled digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray

from benchmarks.results import floors
from pipeline.build import settle_images
from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.data.read import read_labels
from pipeline.errors import DataError


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


def test_images_without_classes_have_no_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "read_labels", lambda folder: None)
    config = load_config("digits", [f"data.path={tmp_path}/mine"])
    with pytest.raises(DataError, match="mine has no classes, and a row of results needs scores"):
        floors.scores_over_seeds(lambda seed: np.zeros(4), config)
