"""Spherical k-means: the reference's numbers, and the same result for every split of the rows."""

from __future__ import annotations

import pytest
import torch

from pipeline.clustering.kmeans import KMeansResult, kmeans_plus_plus, spherical_kmeans
from pipeline.collectives import Scope
from tests.helpers.golden import assert_close, golden
from tests.helpers.workers import Workers

LLOYD = golden("kmeans_lloyd")


@pytest.mark.parametrize("case", "ABCDE")
def test_lloyd_matches_the_reference(case: str) -> None:
    x, init = LLOYD[f"{case}/X"], LLOYD[f"{case}/init"]
    result = spherical_kmeans(x, 7, init=init, tol=0.5 if case == "E" else 1e-4)
    assert result.labels.equal(LLOYD[f"{case}/final_labels"])
    assert_close(result.centers, LLOYD[f"{case}/final_centres"])
    assert result.n_iter == len(LLOYD[f"{case}/inertia_per_iter"]) - 1
    assert result.inertia == pytest.approx(float(LLOYD[f"{case}/inertia_per_iter"][1:].min()), rel=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_seeding_matches_the_reference(seed: int) -> None:
    pp = golden("kmeans_pp")
    first, uniforms = pp[f"seed{seed}/first_index"], pp[f"seed{seed}/uniforms"]
    seeding = kmeans_plus_plus(pp["X"], first[None], uniforms[None])
    assert seeding.rows[0].tolist() == pp[f"seed{seed}/chosen"].tolist()
    assert_close(seeding.centers[0], pp["X"][seeding.rows[0]])


def test_ten_restarts_find_the_reference_optimum() -> None:
    pp = golden("kmeans_pp")
    result = spherical_kmeans(pp["X"], 7, restarts=10)
    assert result.inertia == pytest.approx(float(pp["fit/inertia"]), rel=1e-9)


def _features(rows: int = 301, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(5, 8, generator=generator)
    noise = 0.3 * torch.randn(rows, 8, generator=generator)
    return (centers[torch.arange(rows) % 5] + noise).to(dtype)


def _sharded(rank: int, x: torch.Tensor, cuts: list[int], options: dict) -> KMeansResult:
    return spherical_kmeans(x[cuts[rank] : cuts[rank + 1]], 5, **options)


@pytest.mark.parametrize("cuts", [[0, 150, 301], [0, 17, 301], [0, 0, 301]])
@pytest.mark.parametrize("options", [{"restarts": 4}, {"restarts": 1}, {"restarts": 2, "empty": "reseed", "seed": 9}])
def test_any_split_gives_the_same_clusters(pair: Workers, cuts: list[int], options: dict) -> None:
    x = _features()
    whole = spherical_kmeans(x, 5, **options)
    parts = pair.run(_sharded, x, cuts, options)
    assert torch.cat([p.labels for p in parts]).equal(whole.labels)
    for part in parts:
        assert_close(part.centers, whole.centers, rtol=1e-6)
        assert part.inertia == pytest.approx(whole.inertia, rel=1e-6)


@pytest.mark.parametrize("case", "BC")
def test_empty_clusters_split_like_whole(pair: Workers, case: str) -> None:
    x, init = LLOYD[f"{case}/X"], LLOYD[f"{case}/init"]
    parts = pair.run(_with_init, x, init, 100)
    assert torch.cat([p.labels for p in parts]).equal(LLOYD[f"{case}/final_labels"])
    assert_close(parts[0].centers, LLOYD[f"{case}/final_centres"])


def _with_init(rank: int, x: torch.Tensor, init: torch.Tensor, cut: int) -> KMeansResult:
    return spherical_kmeans(x[cut:] if rank else x[:cut], 7, init=init)


def _far_center(x: torch.Tensor) -> torch.Tensor:
    """Five starts of which the last is a copy of the first, so that it never gets a row."""
    return torch.cat([x[:4], x[:1]])


def test_reseeding_fills_empty_clusters_and_lowers_inertia() -> None:
    x = _features()
    kept = spherical_kmeans(x, 5, init=_far_center(x))
    reseeded = spherical_kmeans(x, 5, init=_far_center(x), empty="reseed")
    assert torch.bincount(kept.labels, minlength=5)[4] == 0
    assert torch.bincount(reseeded.labels, minlength=5).min() > 0
    assert reseeded.inertia < kept.inertia


def _reseed_sharded(rank: int, x: torch.Tensor) -> KMeansResult:
    return spherical_kmeans(x[200:] if rank else x[:200], 5, init=_far_center(x), empty="reseed")


def test_reseeding_is_the_same_for_every_split(pair: Workers) -> None:
    x = _features()
    whole = spherical_kmeans(x, 5, init=_far_center(x), empty="reseed")
    parts = pair.run(_reseed_sharded, x)
    assert torch.cat([p.labels for p in parts]).equal(whole.labels)


def test_the_other_starts_are_those_that_lost() -> None:
    x = _features()
    result = spherical_kmeans(x, 5, restarts=4, seed=9)
    alone = [spherical_kmeans(x, 5, restarts=1, seed=9 + start) for start in range(4)]
    losers = [start for start in alone if not start.labels.equal(result.labels)]
    assert result.others.shape == (3, 5, 8)
    assert losers  # else this test could not fail
    for loser in losers:
        assert any(torch.allclose(loser.centers, other) for other in result.others)
    assert alone[0].others.shape == (0, 5, 8)


def _its_own_rows(x: torch.Tensor, rank: int, scope: Scope = Scope.ALL_WORKERS) -> list[KMeansResult]:
    """Seeding, and the reseeding of an empty cluster, on rows that differ between the workers."""
    x = x.roll(37 * rank, dims=0) + rank
    seeded = spherical_kmeans(x, 5, restarts=2, seed=rank, scope=scope)
    return [seeded, spherical_kmeans(x, 5, init=_far_center(x), empty="reseed", scope=scope)]


def _on_each(rank: int, x: torch.Tensor) -> list[KMeansResult]:
    return _its_own_rows(x, rank, Scope.THIS_WORKER)


def test_within_the_scope_of_one_worker_nothing_comes_from_the_others(pair: Workers) -> None:
    x = _features()
    for rank, results in enumerate(pair.run(_on_each, x)):
        for found, expected in zip(results, _its_own_rows(x, rank), strict=True):
            assert found.labels.equal(expected.labels)
            assert_close(found.centers, expected.centers, rtol=1e-6)
            assert found.inertia == pytest.approx(expected.inertia, rel=1e-6)


def test_more_clusters_than_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_clusters is 9 for 8 rows"):
        spherical_kmeans(torch.randn(8, 3), 9)


def test_a_feature_that_is_not_finite_is_an_error() -> None:
    x = _features()
    x[7, 2] = float("nan")
    with pytest.raises(ValueError, match="1 of 301 feature rows are not finite"):
        spherical_kmeans(x, 5)


def test_identical_rows_are_one_cluster_and_no_crash() -> None:
    result = spherical_kmeans(torch.ones(10, 4), 3, restarts=2)
    assert result.inertia == pytest.approx(0, abs=1e-5)
    assert len(result.labels.unique()) == 1
