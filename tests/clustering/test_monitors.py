"""Monitors: scikit-learn's numbers, on any number of workers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipeline.clustering import monitors
from pipeline.clustering.monitors import NEIGHBOURS, TEMPERATURE, knn_accuracy, linear_accuracy, ridge
from tests.helpers.workers import Workers

Rows = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Features (300, 8) of 4 overlapping classes, a tenth of them unknown, and which rows are held out."""
    random = torch.Generator().manual_seed(0)
    classes = torch.randint(4, (300,), generator=random)
    means = torch.randn(4, 8, generator=random, dtype=torch.float64)
    features = means[classes] + torch.randn(300, 8, generator=random, dtype=torch.float64)
    held_out = torch.rand(300, generator=random) < 0.2
    return features, torch.where(torch.rand(300, generator=random) < 0.1, -1, classes), held_out


def _numpy(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    features, classes, held_out = (part.numpy() for part in rows)
    known, asked = ~held_out & (classes >= 0), held_out & (classes >= 0)
    return features[known], classes[known], features[asked], classes[asked]


def test_neighbours_vote_as_in_scikit_learn(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    known, answers, asked, wanted = _numpy(rows)
    reference = KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights=lambda far: np.exp((1 - far) / TEMPERATURE))
    expected = reference.fit(known, answers).score(asked, wanted)
    assert 0.5 < expected < 0.95
    assert knn_accuracy(*rows) == pytest.approx(expected)
    for name, value in {"BLOCK_QUERIES": 7, "TILE_QUERIES": 3, "BLOCK_VALUES": 3 * 50}.items():
        monkeypatch.setattr(monitors, name, value)
    assert knn_accuracy(*rows) == pytest.approx(expected)


def test_exchanges_do_not_grow_with_the_rows_that_are_searched(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million of them had 13 queries in each exchange."""
    exchanged: list[int] = []
    monkeypatch.setattr(monitors, "gather_rows", lambda part: exchanged.append(len(part)) or part)
    monkeypatch.setattr(monitors, "BLOCK_VALUES", 1024 * 8)
    knn_accuracy(*rows)
    asked = int((rows[2] & (rows[1] >= 0)).sum())
    assert exchanged == [asked] * 2  # the queries and their classes


def test_the_linear_probe_is_scikit_learns_ridge(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    known, answers, asked, wanted = _numpy(rows)
    scaler, reference = StandardScaler().fit(known), Ridge(alpha=monitors.RIDGE)
    reference.fit(scaler.transform(known), np.eye(4)[answers])
    monkeypatch.setattr(monitors, "BLOCK_VALUES", 13 * 50)  # 50 rows at a time
    weights = ridge(torch.from_numpy(known), torch.from_numpy(answers), 4).numpy()
    np.testing.assert_allclose(weights[:-1], reference.coef_.T / scaler.scale_[:, None], rtol=1e-9)
    predicted = reference.predict(scaler.transform(asked))
    np.testing.assert_allclose(asked @ weights[:-1] + weights[-1], predicted, rtol=1e-9)
    expected = (predicted.argmax(axis=1) == wanted).mean()
    assert 0.5 < expected < 0.99
    assert linear_accuracy(*rows) == pytest.approx(expected)


def _both(rank: int, rows: Rows, cut: int) -> tuple[float, float]:
    part = slice(0, cut) if rank == 0 else slice(cut, None)
    own = tuple(tensor[part] for tensor in rows)
    return knn_accuracy(*own), linear_accuracy(*own)


@pytest.mark.parametrize("cut", [150, 290, 300])
def test_two_workers_measure_what_one_does(pair: Workers, rows: Rows, cut: int) -> None:
    """Also when one has less rows than neighbours vote, or none."""
    assert pair.run(_both, rows, cut) == [(knn_accuracy(*rows), linear_accuracy(*rows))] * 2


@pytest.mark.parametrize("measure", [knn_accuracy, linear_accuracy])
def test_fewer_rows_than_neighbours_and_collapsed_features_are_measured(
    measure: Callable[[Tensor, Tensor, Tensor], float],
) -> None:
    classes, held_out = torch.tensor([0, 0, 1, 1, 0, 1]), torch.tensor([0, 0, 0, 0, 1, 1]).bool()
    assert measure(torch.nn.functional.one_hot(classes).float(), classes, held_out) == 1
    assert measure(torch.ones(6, 2), classes, held_out) == 0.5


@pytest.mark.parametrize("held_out", [False, True])
def test_rows_of_one_kind_only_are_refused(held_out: bool) -> None:
    with pytest.raises(ValueError, match="give some of both"):
        knn_accuracy(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]), torch.full((4,), held_out))
