"""The atlas of a clustering: one HTML page with all its data, scripts and pictures inside, which needs no network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.report.bundle import as_column, as_json, bundle
from pipeline.report.choice import Assignments, Duplicate
from pipeline.report.sprites import Pictures

SCRIPTS = (
    "elements.js",
    "data.js",
    "selection.js",
    "pictures.js",
    "images.js",
    "navigation.js",
    "groups.js",
    "clusters.js",
    "members.js",
    "map.js",
    "classes.js",
    "training.js",
    "lists.js",
    "names.js",
    "app.js",
)
DATA_START = '<script type="application/json" id="atlas-data">'
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ShownCluster:
    """One cluster.

    Attributes
    ----------
    name : str
        Given by a person; empty without one. Clusters with the same name are one group.
    cohesion, margin : float
        Means over its images of the cosine to the centre, and of how much that exceeds the cosine to the runner-up.
    cell : (column, row)
        In the overview.
    near : sequence of (cluster, cosine)
        The clusters whose centres are nearest.
    typical, border : sequence of int
        Rows of `Atlas.rows`: its contact sheet.
    """

    number: int
    name: str
    size: int
    outliers: int
    cohesion: float
    margin: float
    cell: tuple[int, int]
    near: Sequence[tuple[int, float]]
    typical: Sequence[int]
    border: Sequence[int]


@dataclass(frozen=True)
class Atlas:
    """All that the page shows, as plain values.

    Attributes
    ----------
    facts : sequence of (what, value)
        The headline.
    origin : sequence of (what, value)
        What the page shows, and what it was made with.
    notes : sequence of str
        What is a sample, or missing, and why.
    total : int
        Images of the data set.
    images : Assignments
        All of them, or a sample.
    rows : int64 ndarray (R,)
        Indices of the images that the page knows; those with a picture come first.
    pictures : Pictures
        Of the first T rows; none where the shards are gone.
    places : float32 ndarray (R, 2)
        On the map, within [-1, 1]; NaN for images that are not on it.
    method : str
        How the places were found: "UMAP", "t-SNE" or, for very few images, "PCA"; empty without a map.
    alike : int64 ndarray (T, A)
        For each row with a picture the rows of the most similar ones, nearest first; A is 0 without features.
    counts : sequence of (class, cluster, images)
        Empty without classes.
    history : sequence of dict
        Metrics of each epoch, with `epoch` among them.
    warmup : int
        Epochs without the prototype loss, at the start.
    alarms : sequence of dict
        Each with "epoch", "kind" and "text".
    duplicates : sequence of Duplicate
        By rows.
    outliers : sequence of int
        Rows.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    origin: Sequence[tuple[str, str]]
    notes: Sequence[str]
    total: int
    images: Assignments
    rows: Array
    pictures: Pictures
    places: Array
    method: str
    alike: Array
    clusters: Sequence[ShownCluster]
    class_names: Sequence[str]
    counts: Sequence[Sequence[int]]
    history: Sequence[Mapping[str, float]]
    warmup: int
    alarms: Sequence[Mapping[str, Any]]
    duplicates: Sequence[Duplicate]
    outliers: Sequence[int]


def atlas_page(atlas: Atlas) -> str:
    """The page as HTML; texts from outside are data in it and never markup."""
    return bundle("atlas.html", SCRIPTS, atlas.title, _data(atlas), atlas.pictures)


def rename_clusters(page: str, names: Mapping[int, str]) -> str:
    """The page with new cluster names and all else unchanged; ValueError if `page` is not an atlas."""
    head, found, rest = page.partition(DATA_START)
    text, end, tail = rest.partition("</script>")
    if not found or not end:
        raise ValueError("the page has no data of an atlas")
    values = json.loads(text)
    for cluster in values["clusters"]:
        cluster["name"] = names.get(cluster["number"], "")
    return "".join([head, found, as_json(values), end, tail])


def _data(atlas: Atlas) -> str:
    """Everything but the pictures, as JSON."""
    images, rows = atlas.images, atlas.rows
    columns = {
        "index": rows.astype(np.int32),
        "cluster": images.cluster[rows].astype(np.int32),
        "runnerUp": images.runner_up[rows].astype(np.int32),
        "similarity": images.similarity[rows].astype(np.float32),
        "margin": images.margin[rows].astype(np.float32),
        "outlier": images.outlier[rows].astype(np.float32),
        "label": (np.full(len(rows), -1) if images.label is None else images.label[rows]).astype(np.int32),
        "x": atlas.places[:, 0].astype(np.float32),
        "y": atlas.places[:, 1].astype(np.float32),
        "alike": atlas.alike.astype(np.int32),
    }
    values = {
        "title": atlas.title,
        "facts": atlas.facts,
        "origin": atlas.origin,
        "notes": atlas.notes,
        "images": atlas.total,
        "pictures": len(atlas.pictures),
        "alikePerImage": atlas.alike.shape[1],
        "method": atlas.method,
        "columns": {name: as_column(column) for name, column in columns.items()},
        "paths": [images.path[row] for row in rows],
        "clusters": [asdict(cluster) for cluster in atlas.clusters],
        "classNames": atlas.class_names,
        "counts": atlas.counts,
        "history": [_finite(metrics) for metrics in atlas.history],
        "warmup": atlas.warmup,
        "alarms": atlas.alarms,
        "duplicates": [asdict(pair) for pair in atlas.duplicates],
        "outliers": atlas.outliers,
    }
    return as_json(values)


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Six digits of each metric, and null for values that JSON cannot represent."""
    return {key: float(f"{value:.6g}") if math.isfinite(value) else None for key, value in metrics.items()}
