"""Neighbours by cosine similarity: exact, approximate, shared by tasks, and kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.backbone_features import neighbours
from pipeline.backbone_features.cache import CachePart, FeatureCache, part_table
from pipeline.backbone_features.neighbours import (
    approximate_neighbours,
    ensure_neighbours,
    exact_neighbours,
    read_neighbours,
)
from pipeline.errors import ConfigError
from pipeline.storage import Folder
from tests.helpers.cached_features import all_features, frozen_config, make_cache

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, FeatureCache]:
    return make_cache(frozen_config(tmp_path_factory.mktemp("neighbours"), "views.neighbours=0"))[:2]


def test_neighbours_are_those_of_all_similarities_and_never_the_image_itself(
    cached: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are compared by their views, of which the un-augmented one counts twice as much as the others together."""
    folder, cache = cached
    views = F.normalize(torch.from_numpy(all_features(folder, cache)).double(), dim=2)
    means = F.normalize(2 * views[:, 0] + views[:, 1:].mean(1), dim=1)
    unit = F.normalize((means - means.mean(0)) / means.std(0, correction=0).clamp(min=1e-6), dim=1)
    expected = (unit @ unit.T - 2 * torch.eye(200)).topk(5).indices
    assert exact_neighbours(folder, cache, 5).tolist() == expected.tolist()
    monkeypatch.setattr(neighbours, "TASK_IMAGES", 37)
    monkeypatch.setattr("pipeline.clustering.neighbours.QUERIES", 10)
    assert exact_neighbours(folder, cache, 5).tolist() == expected.tolist()


def test_they_are_found_once(cached: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = cached
    assert read_neighbours(folder, 0, CPU) is None
    ensure_neighbours(folder, cache, 3)
    monkeypatch.setattr(neighbours, "exact_neighbours", lambda *_: pytest.fail("found a second time"))
    ensure_neighbours(folder, cache, 3)
    found = read_neighbours(folder, 3, CPU)
    assert found is not None
    assert found.shape == (200, 3)


def test_more_neighbours_than_images_are_refused(cached: Any) -> None:
    with pytest.raises(ConfigError, match=r"views.neighbours=200 must be less than the number of images, 200"):
        ensure_neighbours(*cached, 200)


def clustered(folder: Path, images: int, size: int = 16) -> tuple[Folder, FeatureCache]:
    """A cache of random features that lie in groups, in parts of 500 images."""
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    centers = rng.normal(size=(50, size))
    features = (centers[rng.integers(50, size=images)] + 0.3 * rng.normal(size=(images, size))).astype(np.float16)
    parts = tuple(CachePart(file=f"part-{i}.parquet", first_index=i, rows=500) for i in range(0, images, 500))
    for part in parts:
        pq.write_table(part_table(part.first_index, features[part.first_index :][:500, None]), folder / part.file)
    key = {"images": "", "encoder": "", "weights": "", "preprocessing": {}, "views": {}, "precision": ""}
    return Folder(str(folder)), FeatureCache(
        key=key, num_images=images, views=1, feature_size=size, parts=parts, seconds=0
    )


def test_many_images_have_approximate_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = clustered(tmp_path, 4000)
    exact, found = exact_neighbours(folder, cache, 10), approximate_neighbours(folder, cache, 10)
    assert not (found == np.arange(4000)[:, None]).any()
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)])
    assert recall > 0.9
    monkeypatch.setattr(neighbours, "EXACT_IMAGES", 1000)
    ensure_neighbours(folder, cache, 10)
    assert np.array_equal(np.load(tmp_path / "neighbours-10-by-mean.npy"), found)


def test_without_faiss_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(neighbours, "EXACT_IMAGES", 100)
    with pytest.raises(ConfigError, match=r"needs faiss for more than 100 .*; run `pip install .*'\.\[faiss\]'"):
        ensure_neighbours(*clustered(tmp_path, 500), 3)
