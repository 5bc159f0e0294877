"""k-means on samples, on narrow and mapped rows, on exact sums, and within bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.clustering import kmeans, nearest
from pipeline.clustering.kmeans import KMeansResult, spherical_kmeans
from pipeline.clustering.lloyd import Lloyd
from pipeline.clustering.nearest import nearest_center
from pipeline.clustering.rows import look_at
from pipeline.collectives import Scope
from tests.helpers.workers import Workers

K = 6
CUTS = [[0, 700, 2003], [0, 1, 2003], [0, 0, 2003]]


def features(rows: int = 2003, size: int = 16, noise: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    centers = F.normalize(torch.randn(K, size, generator=generator), dim=1)
    spread = noise / size**0.5 * torch.randn(rows, size, generator=generator)
    lengths = 0.5 + torch.rand(rows, 1, generator=generator)
    return lengths * (centers[torch.randint(K, (rows,), generator=generator)] + spread)


def clustered(x: Tensor, seed_rows: int = 100, **options: Any) -> KMeansResult:
    """k-means that starts on small samples."""
    with mock.patch.object(kmeans, "SEED_ROWS", seed_rows):
        return spherical_kmeans(x, K, **options)


def started(x: Tensor, *starts: Tensor, reseed: bool = False) -> Lloyd:
    rows = look_at(x, Scope.THIS_WORKER, len(starts[0]))
    return Lloyd(rows, torch.stack(starts).to(rows.dtype), reseed=reseed)


def iterated(x: Tensor, passes: int = 3) -> Lloyd:
    runs = started(x, x[:K], x[K : 2 * K])
    for _ in range(passes):
        runs.iterate(0.0, 0.0)
    return runs


@pytest.mark.parametrize("values", [1, 700, 1 << 30])
def test_sums_are_the_same_for_every_size_of_chunks(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    whole = iterated(features())
    monkeypatch.setattr(nearest, "CHUNK_VALUES", values)
    monkeypatch.setattr(nearest, "LEAST_ROWS", 1)
    chunked = iterated(features())
    assert chunked.labels.equal(whole.labels)
    assert chunked.last.sums.equal(whole.last.sums)
    assert chunked.centers.equal(whole.centers)


def test_sums_that_were_moved_are_those_of_the_members() -> None:
    x = features()
    runs = iterated(x)
    assert runs.active == [0, 1]
    for sums, labels in zip(runs.own_sums, runs.labels.long(), strict=True):
        expected = torch.zeros(K, 16, dtype=torch.float64).index_add_(0, labels, x.double())
        torch.testing.assert_close(sums[:, :-1] * runs.rows.step, expected, rtol=0, atol=1e-7)
        assert sums[:, -1].long().equal(torch.bincount(labels, minlength=K))


def test_rows_compared_with_the_moved_centres_alone_get_the_labels_of_a_full_search() -> None:
    x = features(size=8, noise=4.0)
    runs = started(x, x[:60])
    partial_passes = 0
    while runs.iterate(0.0, 0.0):
        before = runs.centers[0]
        partial_passes += 2 * int((runs._means()[0] != before).any(dim=1).sum()) <= 60
        assert runs.labels[0].long().equal(nearest_center(x, before).labels)
    assert partial_passes > 1  # else this test could not fail


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("reseed", [False, True])
def test_full_and_incremental_passes_find_the_same(dtype: torch.dtype, reseed: bool) -> None:
    x = features(size=8, noise=4.0).to(dtype)
    with_a_copy = torch.cat([x[60:119], x[60:61]])  # its last cluster is empty
    incremental, full = (started(x, x[:60], with_a_copy, reseed=reseed) for _ in range(2))
    full.incremental = False
    unfinished = True
    while unfinished:
        unfinished = incremental.iterate(0.0, 0.0)
        assert full.iterate(0.0, 0.0) == unfinished
        assert full.active == incremental.active
        assert full.labels.equal(incremental.labels)
        assert full.centers.equal(incremental.centers)
        assert full.last.sums.equal(incremental.last.sums)
        assert full.last.changed.equal(incremental.last.changed)
        assert full.has_empty == incremental.has_empty
        torch.testing.assert_close(full.inertia, incremental.inertia, rtol=1e-6, atol=0)
    assert full.n_iter.equal(incremental.n_iter)
    assert full.best_centers.equal(incremental.best_centers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_rows_cluster_as_the_same_values_in_float32(dtype: torch.dtype) -> None:
    x = features().to(dtype)
    narrow, wide = spherical_kmeans(x, K, restarts=3), spherical_kmeans(x.float(), K, restarts=3)
    assert narrow.labels.equal(wide.labels)
    assert narrow.centers.equal(wide.centers)
    assert narrow.centers.dtype == torch.float32
    assert narrow.inertia == wide.inertia


def test_rows_of_a_mapped_file_cluster_as_those_in_memory(tmp_path: Path) -> None:
    x = features().half()
    x.numpy().tofile(tmp_path / "rows")
    mapped = torch.from_numpy(np.memmap(tmp_path / "rows", np.float16, "r", shape=tuple(x.shape)))
    assert spherical_kmeans(mapped, K, restarts=2).labels.equal(spherical_kmeans(x, K, restarts=2).labels)


def _sharded(rank: int, x: Tensor, cuts: list[int], options: dict) -> KMeansResult:
    return clustered(x[cuts[rank] : cuts[rank + 1]], **options)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("options", [{"restarts": 3}, {"restarts": 2, "fit_rows": 500, "seed": 5, "empty": "reseed"}])
def test_samples_do_not_depend_on_the_split(pair: Workers, cuts: list[int], options: dict) -> None:
    x = features()
    whole = clustered(x, **options)
    parts = pair.run(_sharded, x, cuts, options)
    assert torch.cat([part.labels for part in parts]).equal(whole.labels)
    for part in parts:
        assert part.centers.equal(whole.centers)
        assert part.inertia == pytest.approx(whole.inertia, rel=1e-7)


def test_samples_reach_the_optimum_of_all_rows() -> None:
    x = features()
    sampled, whole = clustered(x, restarts=5), clustered(x, len(x), restarts=5)
    assert sampled.inertia == pytest.approx(whole.inertia, rel=1e-3)


def test_centres_fitted_on_a_sample_label_all_rows() -> None:
    x = features()
    found = clustered(x, restarts=5, fit_rows=400)
    near = nearest_center(x, found.centers)
    assert found.labels.equal(near.labels)
    assert found.inertia == pytest.approx(float((1 - near.similarity).sum()), rel=1e-6)
    assert found.inertia <= 1.05 * spherical_kmeans(x, K, restarts=5).inertia


@pytest.mark.parametrize("count", [1, 10, 1999, 2003, 5000])
def test_a_sample_takes_every_row_at_most_once_in_order(count: int) -> None:
    x = torch.arange(1.0, 2004)[:, None]
    taken = look_at(x, Scope.THIS_WORKER, 1).sample(count, seed=3).features[:, 0]
    assert len(taken) == min(count, 2003)
    assert (taken.diff() > 0).all()


PEAK = """
import resource, sys
import numpy as np, torch
from pipeline.clustering.kmeans import spherical_kmeans
torch.set_num_threads(1)
rows = torch.from_numpy(np.memmap(sys.argv[1], np.float16, "c").reshape(-1, 64))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
spherical_kmeans(rows[:20_000], 20, restarts=1)
before = peak()
spherical_kmeans(rows, 20, restarts=1, fit_rows=200_000)
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_beyond_the_mapped_file_is_a_few_numbers_a_row(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with (tmp_path / "rows").open("wb") as file:
        for _ in range(10):
            generator.standard_normal((100_000, 64), np.float32).astype(np.float16).tofile(file)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "rows")], capture_output=True, text=True, check=True
    )
    mapped, sample, numbers = 1_000_000 * 128 / 2**20, 400_000 * 128 / 2**20, 1_000_000 * 24 / 2**20
    assert float(done.stdout) < mapped + sample + numbers + 30  # a float32 copy of all rows would be 244 MiB more
