"""What is said of an image, and how unusual it is against the training images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.inference.predict import OUTLIER, measure_clusters, predict


def test_the_nearest_two_centres_and_what_is_between_them() -> None:
    found = predict(torch.tensor([[0.1, 0.9, 0.4], [0.5, -0.2, 0.3], [0.7, 0.7, 0.1]]))
    assert found.cluster.tolist() == [1, 0, 0]
    assert found.runner_up.tolist() == [2, 2, 1]
    torch.testing.assert_close(found.similarity, torch.tensor([0.9, 0.5, 0.7]))
    torch.testing.assert_close(found.margin, torch.tensor([0.5, 0.2, 0.0]))


def test_an_outlier_is_judged_by_its_own_cluster() -> None:
    """The same similarity is usual in a wide cluster and far out in a tight one."""
    rng = np.random.default_rng(0)
    tight, wide = 0.95 + 0.005 * rng.standard_normal(500), 0.7 + 0.1 * rng.standard_normal(500)
    cluster = np.repeat([0, 1], 500)
    clusters = measure_clusters(lambda: [(cluster, np.concatenate([tight, wide]))], 2)
    assert clusters.sizes == (500, 500)
    assert clusters.median == pytest.approx((0.95, 0.7), abs=0.01)
    assert clusters.deviation == pytest.approx((0.005, 0.1), rel=0.15)
    found = clusters.outlier(np.array([0, 1, 1]), np.array([0.7, 0.7, 0.1]))
    assert found[0] > 10 * OUTLIER
    assert found[1] == pytest.approx(0, abs=0.2)
    assert found[2] == pytest.approx(6, rel=0.15)


def test_the_share_of_outliers_is_counted() -> None:
    similarity = np.concatenate([np.linspace(0.8, 0.9, 99), [0.0]])
    assert measure_clusters(lambda: [(np.zeros(100, dtype=np.int64), similarity)], 2).outliers == pytest.approx(0.01)


def test_empty_and_constant_clusters_have_usable_statistics() -> None:
    clusters = measure_clusters(lambda: [(np.array([0, 0, 0]), np.array([0.9, 0.9, 0.9]))], 2)
    assert clusters.sizes == (3, 0)
    assert np.isfinite(clusters.outlier(np.array([0, 1]), np.array([0.8, 0.8]))).all()


@pytest.mark.parametrize("rows", [1, 7, 400])
def test_the_statistics_of_blocks_are_those_of_all_images_at_once(rows: int) -> None:
    """Against the definition in docs/using.md; cluster 3 is empty and has the statistics of all."""
    rng = np.random.default_rng(1)
    cluster, similarity = rng.choice([0, 1, 2, 4], 400), rng.uniform(-1, 1, 400).astype(np.float32)
    blocks = [(cluster[at : at + rows], similarity[at : at + rows]) for at in range(0, 400, rows)]
    found = measure_clusters(lambda: iter(blocks), 5)
    assert found.sizes == tuple(np.bincount(cluster, minlength=5).tolist())
    for number in range(5):
        members = similarity[cluster == number] if found.sizes[number] else similarity
        median = np.median(members)
        assert found.median[number] == median
        assert found.deviation[number] == 1.4826 * float(np.median(np.abs(members - median)))
    assert found.similarity == pytest.approx(similarity.astype(np.float64).mean(), rel=1e-12)
    assert found.outliers == (found.outlier(cluster, similarity) > OUTLIER).mean()
