"""Floors: what clusters have to beat, computed from the same images without training.

Each floor is a function from a configuration, whose images are ingested, to a `Floor`; rows name it in rows.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from sklearn.cluster import KMeans

from pipeline.build import build_preprocess
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
    """Scores of a floor: of each score its mean and its standard deviation over `runs` seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    runs: int
    scores: dict[str, tuple[float, float]]


def pixel_floor(config: RunConfig) -> Floor:
    """k-means on the pixels of the evaluation's view."""
    manifest = read_manifest(config.data.path)
    side = config.views.size
    scores = kmeans_scores(view_pixels(config, manifest), config, manifest)
    return Floor(what=f"k-means on {side} x {side} pixels", runs=RUNS, scores=scores)


FLOORS: dict[str, Callable[[RunConfig], Floor]] = {"pixels": pixel_floor}


def view_pixels(config: RunConfig, manifest: Manifest) -> Array:
    """Standardised pixels (N, 3 * side * side) float32 of all images, in order of index."""
    table = read_sample(config.data.path, manifest, manifest.num_images)
    preprocess = build_preprocess(config, manifest)
    rows: Array | None = None
    for start in range(0, len(table), BLOCK_ROWS):
        block = decode_table(table.slice(start, BLOCK_ROWS), config.data.image_size)
        pixels = preprocess(torch.from_numpy(block["image"])).flatten(1).numpy()
        rows = np.empty((manifest.num_images, pixels.shape[1]), np.float32) if rows is None else rows
        rows[block["index"]] = pixels
    assert rows is not None, "a manifest has at least one image"
    return rows


def kmeans_scores(rows: Array, config: RunConfig, manifest: Manifest) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each score of scikit-learn's k-means, over seeds.

    Raises
    ------
    DataError
        When no image has a class, so that there is nothing to score by.
    """
    labels = read_labels(config.data.path)
    if labels is None:
        raise DataError(f"{config.data.path} has no classes, and a row of results needs scores; ingest with labels")
    clusters = make_plan(config, manifest).num_clusters
    runs = [
        clustering_scores(labels, KMeans(clusters, n_init=STARTS, random_state=s).fit_predict(rows))
        for s in range(RUNS)
    ]
    return {name: (float(np.mean(v)), float(np.std(v))) for name in runs[0] for v in [[run[name] for run in runs]]}
