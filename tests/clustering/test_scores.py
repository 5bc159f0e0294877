"""Scores against classes: the golden values, which include what the reference gets wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from pipeline.clustering.scores import (
    best_matching,
    class_table,
    clustering_scores,
    contingency_scores,
    contingency_table,
    greedy_matching,
    matching_accuracy,
)
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
    found = contingency_scores(csr_array(table))
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(true, predicted), abs=1e-12)
    assert found["ari"] == pytest.approx(adjusted_rand_score(true, predicted), abs=1e-12)
    assert found == clustering_scores(true, predicted)


def test_counts_of_billions_do_not_overflow() -> None:
    table = np.full((2, 2), 3_000_000_000)
    assert contingency_scores(csr_array(table)) == pytest.approx({"acc": 0.5, "nmi": 0.0, "ari": 0.0}, abs=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (3, 9), (9, 3), (30, 30)])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_the_sparse_matching_is_the_best_one(shape: tuple[int, int], density: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = rng.integers(1, 9, size=shape) * (rng.random(shape) < density)
        table[0, 0] += 1
        rows, columns = best_matching(csr_array(table))
        assert len(set(rows)) == len(rows) == len(set(columns))
        assert table[rows, columns].sum() == table[linear_sum_assignment(table, maximize=True)].sum()


def test_many_clusters_are_matched_greedily() -> None:
    table = csr_array(np.array([[5, 6, 0], [0, 4, 0], [0, 3, 0]]))
    assert table[greedy_matching(table)].sum() == 6  # the best has 9
    assert table[best_matching(table)].sum() == 9


def test_a_hundred_thousand_clusters_take_no_square_of_them() -> None:
    """A dense table would take 80 GB."""
    clusters, rows = 100_000, 1_000_000
    before = torch.arange(rows) % clusters
    moved = torch.arange(rows) % 10 == 3
    after = torch.where(moved, (before * 7) % clusters, clusters - 1 - before)
    table = contingency_table(before, after, (clusters, clusters))
    assert table is not None
    assert table.sum() == rows
    assert matching_accuracy(table) == pytest.approx(0.9, abs=0.01)


def _tables(rank: int, classes: Tensor, clusters: Tensor, sizes: list[int]) -> tuple[Any, Any]:
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
    (table, square), *others = trio.run(_tables, classes, clusters, sizes)
    assert others == [(None, None)] * 2
    assert table.toarray().tolist() == expected.tolist()
    assert square.shape == (5, 6)
    assert square.sum(axis=1).tolist() == torch.bincount(clusters).tolist()
    assert contingency_scores(csr_array(expected.numpy())) == clustering_scores(classes, clusters)
