"""Pictures of a sweep show the picks, the recommendation and where the tree is cut."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from pipeline.report import sweep_figures as module
from pipeline.report.sweep_figures import draw_dendrogram, draw_sweep

TREE = np.array([[0, 1, 0.2, 2], [2, 3, 0.4, 2], [4, 5, 0.9, 4]], dtype=float)


@pytest.fixture(autouse=True)
def _figures(monkeypatch: pytest.MonkeyPatch):
    """Keep the figures that are drawn, to look into them."""
    kept = plt.close
    monkeypatch.setattr(module.plt, "close", lambda figure: None)
    yield
    kept("all")


def test_each_criterion_has_its_curve_and_its_pick(tmp_path: Path) -> None:
    curves = {"silhouette": [0.1, 0.5, 0.3], "gap": [1.0, 2.0, 3.0]}
    draw_sweep(tmp_path / "x.png", [5, 6, 7], curves, {"silhouette": 6, "gap": 7}, 6, "6 clusters")
    assert (tmp_path / "x.png").stat().st_size > 1000
    for axis, (name, pick, height) in zip(plt.gcf().axes, [("silhouette", 6, 0.5), ("gap", 7, 3.0)], strict=True):
        curve, recommended, dot = axis.lines
        assert curve.get_ydata().tolist() == curves[name]
        assert list(recommended.get_xdata()) == [6, 6]
        assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (pick, height)
        assert axis.get_title(loc="left") == f"{name}: {pick}"


@pytest.mark.parametrize(("groups", "between"), [(4, (0, 0.2)), (3, (0.2, 0.4)), (2, (0.4, 0.9)), (1, (0.9, 1.0))])
def test_the_tree_is_cut_between_the_merges(tmp_path: Path, groups: int, between: tuple[float, float]) -> None:
    draw_dendrogram(tmp_path / "x.png", TREE, np.array([10, 2000, 30, 40]), groups)
    axis = plt.gcf().axes[0]
    assert between[0] < axis.lines[-1].get_xdata()[0] < between[1]
    assert {label.get_text() for label in axis.get_yticklabels()} == {"0 (10)", "1 (2,000)", "2 (30)", "3 (40)"}
