"""Scores against classes: the golden values, which include what the reference gets wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from pipeline.clustering.scores import class_table, clustering_scores, contingency_scores, contingency_table
from tests.helpers.golden import golden
from tests.helpers.workers import Workers

METRICS = golden("metrics")
CASES = sorted({key.split("/")[0] for key in METRICS})


@pytest.mark.parametrize("case", CASES)
def test_scores_match_the_golden_values(case: str) -> None:
    scores = clustering_scores(METRICS[f"{case}/label"].numpy(), METRICS[f"{case}/pred"].numpy())
    assert scores["acc"] == pytest.approx(float(METRICS[f"{case}/acc_hungarian"]), abs=1e-12)
    assert scores["nmi"] == pytest.approx(float(METRICS[f"{case}/nmi"]), abs=1e-12)
    assert scores["ari"] == pytest.approx(float(METRICS[f"{case}/ari"]), abs=1e-12)


def test_scores_of_unlabelled_data_are_an_error() -> None:
    with pytest.raises(ValueError, match="every class is -1"):
        clustering_scores([-1, -1], [0, 1])


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="two arrays of one length"):
        clustering_scores(np.zeros(3), np.zeros(4))


@pytest.mark.parametrize(("classes", "clusters"), [(1, 1), (1, 4), (3, 1), (5, 5), (7, 3)])
def test_scores_from_counts_are_those_of_scikit_learn(classes: int, clusters: int) -> None:
    rng = np.random.default_rng(classes * 10 + clusters)
    true, predicted = rng.integers(classes, size=200), rng.integers(clusters, size=200)
    table = np.zeros((classes + 1, clusters + 2), dtype=np.int64)  # with a class and clusters that have no rows
    np.add.at(table, (true, predicted), 1)
    found = contingency_scores(table)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(true, predicted), abs=1e-12)
    assert found["ari"] == pytest.approx(adjusted_rand_score(true, predicted), abs=1e-12)
    assert found == clustering_scores(true, predicted)


def test_counts_of_billions_do_not_overflow() -> None:
    table = np.full((2, 2), 3_000_000_000)
    assert contingency_scores(table) == pytest.approx({"acc": 0.5, "nmi": 0.0, "ari": 0.0}, abs=1e-9)


def _tables(rank: int, classes: Tensor, clusters: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    table = class_table(classes[own], clusters[own], 5)
    return table, contingency_table(clusters[own], clusters[own].flip(0), (5, 6))


@pytest.mark.parametrize("sizes", [[7, 0, 20], [0, 26, 1]])
def test_tables_count_the_rows_of_all_workers(trio: Workers, sizes: list[int]) -> None:
    """Also where one worker alone has the largest class, and one has no rows."""
    classes, clusters = torch.arange(27) % 4 - 1, (torch.arange(27) % 5).int()
    classes[-1] = 6
    known = classes >= 0
    expected = torch.zeros(7, 5, dtype=torch.int64)
    expected.index_put_((classes[known], clusters[known].long()), torch.tensor(1), accumulate=True)
    for table, square in trio.run(_tables, classes, clusters, sizes):
        assert table.equal(expected)
        assert square.shape == (5, 6)
        assert square.sum(dim=1).equal(torch.bincount(clusters))
    assert contingency_scores(expected.numpy()) == clustering_scores(classes, clusters)
