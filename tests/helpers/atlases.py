"""A small clustering as its run would leave it, made up: images of one colour around centres that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.method.losses import unit
from pipeline.report.choice import Assignments, count_images
from pipeline.report.compose import Clustering
from pipeline.report.mapped_images import map_images
from pipeline.report.sprites import Pictures

SIDE = 48
HISTORY = [
    {"epoch": 0, "acc": 0.3, "seconds_estep": 2.0, "seconds_epoch": 2.5},
    {"epoch": 1, "acc": 0.8, "loss": 1.25, "seconds_estep": 1.0, "seconds_step": 3.0, "seconds_epoch": 4.0},
    {"epoch": 2, "acc": 0.9, "loss": float("nan"), "seconds_estep": 1.0, "seconds_step": 3.0, "seconds_epoch": 4.0},
]
ALARMS = [{"epoch": 1, "kind": "collapse", "text": "size_entropy is <low>"}]


def features(count: int, clusters: int, size: int = 8) -> tuple[Any, Any]:
    """Unit features (count, size) around unit centres (clusters, size); image i belongs to cluster i % clusters."""
    generator = torch.Generator().manual_seed(0)
    centers = unit(torch.randn(clusters, size, generator=generator))
    noise = 0.25 * torch.randn(count, size, generator=generator)
    return unit(centers[torch.arange(count) % clusters] + noise), centers


def assignments(rows: Any, centers: Any, *, labels: bool = True) -> Assignments:
    """What a run writes about these features: clusters by position, the rest by cosine."""
    count, clusters = len(rows), len(centers)
    similarity = (rows @ centers.T).numpy()
    own = np.arange(count) % clusters
    others = similarity.copy()
    others[np.arange(count), own] = -2
    mine = similarity[np.arange(count), own]
    outlier = (np.median(mine) - mine) / (1.4826 * np.median(np.abs(mine - np.median(mine))))
    return Assignments(
        path=[f"photos/{number % 3}/{number:04}.png" for number in range(count)],
        cluster=own,
        runner_up=others.argmax(axis=1),
        similarity=mine,
        margin=mine - others.max(axis=1),
        outlier=outlier.astype(np.float32),
        label=np.where(np.arange(count) % 7 == 0, -1, own % 3) if labels else None,
    )


def clustering(count: int = 60, clusters: int = 5, **changes: Any) -> Clustering:
    """A clustering with everything: map, names, classes, alarms; `changes` replace its parts."""
    rows, centers = features(count, clusters)
    images = changes.get("images", assignments(rows, centers))
    parts = {
        "title": "run <b>",
        "images": images,
        "totals": count_images(images, clusters),
        "centers": centers,
        "mapped": map_images(rows),
        "names": {1: "dogs", 3: "dogs", 2: "<script>alert(1)</script>"},
        "class_names": ["ape", "bee"],
        "history": HISTORY,
        "alarms": ALARMS,
        "origin": [("source", "photos"), ("seed", "3")],
    }
    return Clustering(**parts | changes)


def colour_pictures(chosen: Any) -> Pictures:
    """A square picture of one colour for each image, told apart by its index."""
    return Pictures(colour_tiles(chosen), np.ones(len(chosen), np.float32))


def colour_tiles(chosen: Any) -> Any:
    """Their tiles."""
    colours = np.stack([chosen * 7 % 256, chosen * 29 % 256, chosen * 53 % 256], axis=1).astype(np.uint8)
    return np.broadcast_to(colours[:, None, None], (len(chosen), SIDE, SIDE, 3))
