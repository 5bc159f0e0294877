"""Pictures are drawn for whatever a run may have found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from pipeline.report import figures as module
from pipeline.report.choice import Assignments, count_images
from pipeline.report.figures import BORDERLINE, ROWS, TYPICAL, draw_clusters, draw_curves


@pytest.fixture(autouse=True)
def _figures(monkeypatch: pytest.MonkeyPatch):
    """Keep the figures that are drawn, to look into them."""
    kept = plt.close
    monkeypatch.setattr(module.plt, "close", lambda figure: None)
    yield
    kept("all")


def draw(
    path: Path, clusters: list[int], sizes: list[int], labels: list[int] | None = None, names: tuple[str, ...] = ()
):
    """Draw images whose grey is their number, more typical the smaller it is; returns the figure."""
    count = len(clusters)
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 8, 8, 3))
    similarity = np.linspace(1, 0, count)
    known = None if labels is None else np.array(labels)
    none = np.zeros(count)
    table = Assignments([], np.array(clusters), none, similarity, none, none, known)
    totals = replace(count_images(table, len(sizes)), sizes=np.array(sizes))
    draw_clusters(path, images, np.array(clusters), similarity, totals, names)
    assert path.stat().st_size > 1000
    return plt.gcf()


def shown(figure, row: int) -> list[int]:
    """Numbers of the images in a row of the sheet."""
    columns = TYPICAL + 1 + BORDERLINE
    axes = figure.axes[row * columns : (row + 1) * columns]
    return [int(axis.images[0].get_array()[0, 0, 0]) for axis in axes if axis.images]


def captions(figure) -> list[str]:
    return [text for axis in figure.axes if (text := axis.get_title(loc="left"))]


def test_typical_images_come_first_and_borderline_ones_behind_a_line(tmp_path: Path) -> None:
    figure = draw(tmp_path / "x.png", [0] * 40, [40])
    assert shown(figure, 0) == [*range(TYPICAL), 37, 38, 39]
    assert len(figure.axes[TYPICAL].lines) == 1
    assert all(image.get_alpha() is None for axis in figure.axes for image in axis.images)


def test_a_small_cluster_shows_each_image_once(tmp_path: Path) -> None:
    figure = draw(tmp_path / "x.png", [0] * (TYPICAL + 1), [11])
    assert shown(figure, 0) == [*range(TYPICAL + 1)]
    few = draw(tmp_path / "y.png", [0] * 3, [3])
    assert shown(few, 0) == [0, 1, 2]
    assert not few.axes[TYPICAL].lines


def test_captions_of_a_labelled_set(tmp_path: Path) -> None:
    figure = draw(tmp_path / "x.png", [0, 0, 0, 0, 1], [4000, 1], [1, 1, 1, 0, -1], ("cat", "dog"))
    assert captions(figure) == ["cluster 0: 4,000 images, 75% are dog", "cluster 1: 1 images"]


def test_classes_without_names_are_numbers(tmp_path: Path) -> None:
    assert captions(draw(tmp_path / "x.png", [0, 0], [2], [3, 3]))[0].endswith("100% are 3")


@pytest.mark.parametrize("labels", [None, [-1, -1, -1]])
def test_captions_of_an_unlabelled_set(tmp_path: Path, labels: list[int] | None) -> None:
    assert captions(draw(tmp_path / "x.png", [0, 1, 1], [1, 2], labels)) == [
        "cluster 1: 2 images",
        "cluster 0: 1 images",
    ]


def test_the_largest_of_many_clusters_are_shown(tmp_path: Path) -> None:
    clusters = 3 * ROWS
    figure = draw(tmp_path / "x.png", list(range(clusters)), list(range(1, clusters + 1)))
    assert [caption.split(":")[0] for caption in captions(figure)] == [
        f"cluster {cluster}" for cluster in range(clusters - 1, clusters - 1 - ROWS, -1)
    ]


def test_empty_clusters_and_ones_outside_of_the_sample(tmp_path: Path) -> None:
    figure = draw(tmp_path / "x.png", [0, 0], [9, 0, 5])
    assert captions(figure) == ["cluster 0: 9 images", "cluster 2: 5 images", "cluster 1: 0 images"]
    assert shown(figure, 1) == shown(figure, 2) == []


def history(epochs: int, **more: float) -> list[dict[str, float]]:
    seconds = {"seconds_step": 1.0, "seconds_estep": 0.5, "seconds_epoch": 1.6}
    return [{"epoch": epoch, "label_churn": 0.1, **seconds, **more} for epoch in range(epochs + 1)]


@pytest.mark.parametrize("epochs", [0, 1, 30])
def test_curves_of_any_length(tmp_path: Path, epochs: int) -> None:
    draw_curves(tmp_path / "curves.png", history(epochs, acc=0.5, loss=-1.0))
    assert (tmp_path / "curves.png").stat().st_size > 1000
    scores = plt.gcf().axes[1].lines
    assert [len(line.get_xdata()) for line in scores] == [epochs + 1]


def test_every_loss_is_drawn_whatever_it_is_called(tmp_path: Path) -> None:
    before, after = history(2, loss=-1.0, loss_group=0.5), history(3, loss=1.0, loss_of_tomorrow=2.0)
    draw_curves(tmp_path / "curves.png", before[1:] + after[3:])
    lines = {line.get_label(): list(line.get_xdata()) for line in plt.gcf().axes[0].lines}
    assert lines == {"loss": [1, 2, 3], "loss_group": [1, 2], "loss_of_tomorrow": [3]}


def test_curves_of_an_unlabelled_set_show_the_score_that_needs_no_classes(tmp_path: Path) -> None:
    draw_curves(tmp_path / "curves.png", history(3, label_free=0.7, silhouette=0.4))
    labels = [[line.get_label() for line in axis.lines] for axis in plt.gcf().axes[1:3]]
    assert labels == [["label_free"], ["label_churn", "silhouette"]]


def test_curves_without_any_score_say_so(tmp_path: Path) -> None:
    draw_curves(tmp_path / "curves.png", history(3))
    assert [text.get_text() for text in plt.gcf().axes[1].texts] == ["none recorded"]


def test_times_leave_out_the_total_and_the_epoch_before_training(tmp_path: Path) -> None:
    draw_curves(tmp_path / "curves.png", history(3))
    times = plt.gcf().axes[3]
    assert [text.get_text() for text in times.get_legend().get_texts()] == ["step", "estep"]
    assert times.dataLim.x0 == 1
