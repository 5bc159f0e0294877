"""Places on the map and in the overview."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.report import projection
from pipeline.report.projection import arrange, principal_plane, project
from tests.helpers.atlases import features


def test_without_umap_the_map_is_the_plane_of_most_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    rows = torch.zeros(50, 6)
    rows[:, 4], rows[:, 1] = torch.linspace(-3, 5, 50), torch.linspace(0, 1, 50) ** 2
    found = project(rows)
    assert found.method == "PCA"
    assert found.places.dtype == np.float32
    assert np.abs(found.places).max() == pytest.approx(1)
    assert np.corrcoef(found.places[:, 0], rows[:, 4])[0, 1] > 0.99
    assert np.array_equal(found.places, project(rows).places)


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
    monkeypatch.setattr(projection, "FIT_ROWS", 20)
    rows, _ = features(50, 3)
    found = project(rows)
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


def test_equal_rows_have_a_place() -> None:
    assert np.isfinite(principal_plane(torch.ones(5, 4))).all()
