"""Floors: scores that clusters have to beat, computed from the same images without training.

Each floor is a function from a configuration, whose images are ingested, to a `Floor`; rows name it in rows.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from sklearn.cluster import KMeans

from pipeline.backbone_features.build_cache import ensure_cache
from pipeline.backbone_features.neighbours import ComparedFeatures
from pipeline.build import build_preprocess
from pipeline.cluster import connect
from pipeline.clustering.kmeans import spherical_kmeans
from pipeline.clustering.scores import clustering_scores
from pipeline.config.models import RunConfig
from pipeline.data.decode import decode_table
from pipeline.data.read import read_labels, read_sample
from pipeline.data.shards import Manifest, read_manifest
from pipeline.errors import DataError
from pipeline.plan import make_plan

RUNS, STARTS = 10, 10  # seeds of k-means, and its starts in each
BLOCK_ROWS = 256  # images that are decoded at a time
Array = np.ndarray[Any, Any]


class Floor(BaseModel):
    """Scores of a floor: mean and standard deviation of each score over `runs` seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    runs: int
    scores: dict[str, tuple[float, float]]


def pixel_floor(config: RunConfig) -> Floor:
    """k-means on the pixels of the evaluation's view."""
    manifest = read_manifest(config.data.path)
    side = config.views.size
    rows, clusters = view_pixels(config, manifest), make_plan(config, manifest).num_clusters

    def cluster(seed: int) -> Array:
        return np.asarray(KMeans(clusters, n_init=STARTS, random_state=seed).fit_predict(rows))

    what = f"k-means on {side} x {side} pixels"
    return Floor(what=what, runs=RUNS, scores=scores_over_seeds(cluster, config))


def feature_floor(config: RunConfig) -> Floor:
    """Spherical k-means on the features of the frozen backbone: the standardised mean over the views in the cache."""
    connect()
    manifest = read_manifest(config.data.path)
    folder, cache = ensure_cache(config, manifest)
    compared = ComparedFeatures(folder, cache, unaugmented=1 / cache.views)
    features = torch.cat([compared.of(part) for part in cache.parts])
    clusters = make_plan(config, manifest).num_clusters

    def cluster(seed: int) -> Array:  # its starts have the seeds from `seed` on; no two runs share a start
        return spherical_kmeans(features, clusters, restarts=STARTS, seed=STARTS * seed).labels.numpy()

    what = f"spherical k-means on {cache.feature_size} frozen features, the mean of {cache.views} views"
    return Floor(what=what, runs=RUNS, scores=scores_over_seeds(cluster, config))


FLOORS: dict[str, Callable[[RunConfig], Floor]] = {"pixels": pixel_floor, "features": feature_floor}


def view_pixels(config: RunConfig, manifest: Manifest) -> Array:
    """Standardised pixels (N, 3 * side * side) float32 of all images, in order of index."""
    table = read_sample(config.data.path, manifest, manifest.num_images)
    preprocess = build_preprocess(config, manifest)
    rows: Array | None = None
    for start in range(0, len(table), BLOCK_ROWS):
        block = decode_table(table.slice(start, BLOCK_ROWS), **config.data.decoding)
        pixels = preprocess(torch.from_numpy(block["image"])).flatten(1).numpy()
        rows = np.empty((manifest.num_images, pixels.shape[1]), np.float32) if rows is None else rows
        rows[block["index"]] = pixels
    assert rows is not None, "a manifest has at least one image"
    return rows


def scores_over_seeds(cluster: Callable[[int], Array], config: RunConfig) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each score of the clusters (N,) that `cluster` finds, over seeds.

    Raises
    ------
    DataError
        When no image has a class, so that there is nothing to score by.
    """
    labels = read_labels(config.data.path)
    if labels is None:
        raise DataError(f"{config.data.path} has no classes, and a row of results needs scores; ingest with labels")
    runs = [clustering_scores(labels, cluster(seed)) for seed in range(RUNS)]
    return {name: (float(np.mean(v)), float(np.std(v))) for name in runs[0] for v in [[run[name] for run in runs]]}
