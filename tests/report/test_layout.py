"""Places on the map and in the overview."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.report import layout
from pipeline.report.layout import arrange, lay_out, principal_plane
from tests.helpers.atlases import features


def neighbours_of_one_cluster(places: Any, cluster: Any) -> float:
    """Share of the five nearest places that belong to the same cluster."""
    distances = ((places[:, None] - places[None]) ** 2).sum(axis=-1)
    nearest = distances.argsort(axis=1, kind="stable")[:, 1:6]
    return float((cluster[nearest] == cluster[:, None]).mean())


def test_without_umap_the_map_keeps_clusters_apart(no_umap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "TSNE_ROWS", 150)
    rows, _ = features(200, 10)
    cluster = np.arange(200) % 10
    found = lay_out(rows)
    assert (found.method, found.places.shape, found.places.dtype) == ("t-SNE", (200, 2), np.float32)
    assert np.abs(found.places).max() == pytest.approx(1)
    flat = neighbours_of_one_cluster(principal_plane(rows), cluster)
    assert neighbours_of_one_cluster(found.places, cluster) > max(0.8, flat + 0.1)
    assert np.array_equal(found.places, lay_out(rows).places)


def test_the_plane_is_that_of_most_variance() -> None:
    rows = torch.zeros(50, 6)
    rows[:, 4], rows[:, 1] = torch.linspace(-3, 5, 50), torch.linspace(0, 1, 50) ** 2
    places = principal_plane(rows)
    assert places.dtype == np.float32
    assert np.abs(places).max() == pytest.approx(1)
    assert np.corrcoef(places[:, 0], rows[:, 4])[0, 1] > 0.99
    assert np.array_equal(places, principal_plane(rows))


def test_umap_learns_from_a_sample_and_places_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Learner:
        def __init__(self, **settings: Any) -> None:
            seen["settings"] = settings

        def fit_transform(self, rows: Any) -> Any:
            seen["fitted"] = len(rows)
            return rows[:, :2]

        def transform(self, rows: Any) -> Any:
            return rows[:, :2]

    module = ModuleType("umap")
    module.__spec__, module.UMAP = ModuleSpec("umap", None), Learner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    monkeypatch.setattr(layout, "FIT_ROWS", 20)
    rows, _ = features(50, 3)
    found = lay_out(rows)
    assert (found.method, seen["fitted"], found.places.shape) == ("UMAP", 20, (50, 2))
    assert seen["settings"]["random_state"] == 0
    scale = (rows[1, 0] - rows[0, 0]) / (found.places[1, 0] - found.places[0, 0])
    assert torch.from_numpy(found.places * scale.numpy() - rows[:, :2].numpy()).std(dim=0).max() < 1e-5


@pytest.mark.parametrize("count", [1, 2, 10, 37, 200])
def test_no_two_clusters_share_a_cell(count: int) -> None:
    cells = arrange(np.random.default_rng(0).normal(size=(count, 2)))
    assert len({tuple(cell) for cell in cells}) == count
    assert cells.min() >= 0
    columns, rows = cells.max(axis=0) + 1
    assert columns * rows < 1.5 * count + 2


def test_the_overview_keeps_the_map() -> None:
    places = np.array([[x, y] for x in range(8) for y in range(4)], float)
    cells = arrange(places)
    assert np.corrcoef(places[:, 0], cells[:, 0])[0, 1] > 0.95
    assert abs(np.corrcoef(places[:, 1], cells[:, 1])[0, 1]) > 0.95


@pytest.mark.parametrize("count", [1, 3, 4, 50])
def test_equal_rows_have_a_place(no_umap: None, count: int) -> None:
    assert np.isfinite(principal_plane(torch.ones(count, 4))).all()
    assert np.isfinite(lay_out(torch.full((count, 4), 0.5)).places).all()
