"""Hierarchical k-means: as many clusters as asked for, close to one search, and the same for every split."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.clustering import hierarchical
from pipeline.clustering.hierarchical import _shares, hierarchical_kmeans, nearest_of_parts
from pipeline.clustering.kmeans import KMeansResult, spherical_kmeans
from pipeline.clustering.nearest import nearest_center
from pipeline.clustering.rows import look_at
from pipeline.collectives import Scope
from tests.clustering.test_kmeans_at_scale import CUTS, features
from tests.helpers.workers import Workers


def test_it_comes_close_to_k_means_on_all_clusters() -> None:
    x = features(noise=2.0)
    found, whole = hierarchical_kmeans(x, 50), spherical_kmeans(x, 50, restarts=1, empty="reseed")
    assert found.centers.shape == (50, 16)
    assert found.others.shape == (0, 50, 16)
    assert found.inertia <= 1.02 * whole.inertia


def test_passes_over_all_clusters_bring_it_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(noise=2.0)
    moved = hierarchical_kmeans(x, 50).inertia
    monkeypatch.setattr(hierarchical, "PASSES", 0)
    assert moved < 0.99 * hierarchical_kmeans(x, 50).inertia


@pytest.mark.parametrize("clusters", [1, 2, 7, 2003])
def test_any_number_of_clusters_can_be_had(clusters: int) -> None:
    found = hierarchical_kmeans(features(), clusters)
    assert found.centers.shape == (clusters, 16)
    assert torch.isfinite(found.centers).all()


def test_a_search_of_all_parts_finds_the_nearest_centre() -> None:
    x, centers = features(), features(30)
    parts = list(centers.split([3, 20, 7]))
    found, whole = nearest_of_parts(look_at(x, Scope.ALL_WORKERS, 30), parts), nearest_center(x, centers)
    assert found.labels.equal(whole.labels)
    torch.testing.assert_close(found.similarity, whole.similarity)


def test_a_search_of_few_parts_is_rarely_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(noise=2.0)
    monkeypatch.setattr(hierarchical, "BLOCK", 300)
    found = hierarchical_kmeans(x, 100)
    assert (found.labels == nearest_center(x, found.centers).labels).float().mean() > 0.9


def _sharded(rank: int, x: Tensor, cuts: list[int], fit_rows: int | None) -> KMeansResult:
    return hierarchical_kmeans(x[cuts[rank] : cuts[rank + 1]], 40, fit_rows=fit_rows)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("fit_rows", [None, 900])
def test_any_split_gives_the_same_clusters(pair: Workers, cuts: list[int], fit_rows: int | None) -> None:
    x = features()
    whole = hierarchical_kmeans(x, 40, fit_rows=fit_rows)
    parts = pair.run(_sharded, x, cuts, fit_rows)
    assert torch.cat([part.labels for part in parts]).equal(whole.labels)
    assert parts[0].centers.equal(whole.centers)
    assert parts[1].inertia == pytest.approx(whole.inertia, rel=1e-7)


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [
        ([10, 10], 4, [2, 2]),
        ([30, 10, 0], 4, [3, 1, 0]),
        ([1, 99], 50, [1, 49]),
        ([2, 3, 1], 6, [2, 3, 1]),
        ([100, 1, 1], 3, [1, 1, 1]),
        ([0, 0, 5], 2, [0, 0, 2]),
    ],
)
def test_each_coarse_cluster_gets_its_share(sizes: list[int], total: int, expected: list[int]) -> None:
    assert _shares(sizes, total) == expected


def test_too_many_clusters_are_an_error() -> None:
    with pytest.raises(ValueError, match="num_clusters is 9 for 8 rows"):
        hierarchical_kmeans(torch.randn(8, 3), 9)
