"""Compose the values of an atlas from a clustering: choose what is shown, and decode only those images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.method.losses import unit
from pipeline.report.atlas import Atlas, ShownCluster
from pipeline.report.choice import (
    OUTLIERS,
    Assignments,
    ClusterTotals,
    ContactSheet,
    contact_sheets,
    judge_pairs,
    largest_clusters,
    listed_outliers,
    near_pairs,
)
from pipeline.report.layout import arrange, principal_plane
from pipeline.report.mapped_images import MappedImages, alike
from pipeline.report.sprites import Pictures

MAP_IMAGES = 6_000  # on the map of the page
ALIKE = 8  # most similar images beside an image
NEAR = 6  # nearest clusters of a cluster
PATH_BYTES = 5_000_000  # of the paths in the page
SCORES = {
    "acc": "ACC",
    "nmi": "NMI",
    "ari": "ARI",
    "label_free": "label-free score",
    "agreement": "members that agree on an image",
}
Array = np.ndarray[Any, Any]
NO_PICTURES = Pictures(np.zeros((0, 48, 48, 3), np.uint8), np.zeros(0, np.float32))
ReadPictures = Callable[[Array], Pictures | None]
"""From sorted indices (n,) to their pictures, or None when the images are gone."""


@dataclass(frozen=True)
class Clustering:
    """A clustering as its run left it.

    Attributes
    ----------
    images : Assignments
        All images, or a sample of them.
    totals : ClusterTotals
        Of all images.
    centers : Tensor (K, D)
        Of any length; only their directions count.
    mapped : MappedImages or None
        None where the run left no features.
    names : dict
        Number of a cluster -> the name that a person gave it.
    history : sequence of dict
        Metrics of each epoch.
    alarms : sequence of dict
        Each with "epoch", "kind" and "text".
    warmup : int
        Epochs of the warm-up.
    origin : sequence of (what, value)
        Source, settings, and what else the clustering was made with.
    metrics : dict
        Of a clustering that no epochs led to.
    """

    title: str
    images: Assignments
    totals: ClusterTotals
    centers: Tensor
    mapped: MappedImages | None
    names: Mapping[int, str]
    class_names: Sequence[str]
    history: Sequence[Mapping[str, float]]
    alarms: Sequence[Mapping[str, Any]]
    warmup: int = 0
    origin: Sequence[tuple[str, str]] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """What the page shows of a clustering: numbers of clusters, and images by index."""

    numbers: Array
    sheets: Sequence[ContactSheet]
    outliers: Array
    on_map: Array
    pairs: Array
    cosines: Array

    @property
    def images(self) -> Array:
        """All images with a picture. The first one of each cluster comes first, so that one sheet has them all."""
        first = [sheet.typical[:1] for sheet in self.sheets]
        parts = [*first, *(sheet.images for sheet in self.sheets), self.on_map, self.outliers, self.pairs.reshape(-1)]
        together = np.concatenate(parts).astype(np.int64)
        _, places = np.unique(together, return_index=True)
        return together[np.sort(places)]


def compose(clustering: Clustering, read_pictures: ReadPictures) -> Atlas:
    """The atlas of a clustering."""
    images, mapped = clustering.images, clustering.mapped
    shown = choose(clustering)
    chosen = shown.images
    pictures = _pictures(chosen, read_pictures)
    rows = searchable(images, chosen)
    row_of = np.full(len(images), -1)
    row_of[rows] = np.arange(len(rows))
    pairs = row_of[shown.pairs]
    duplicates = judge_pairs(pairs, shown.cosines, None if pictures is None else pictures.tiles[pairs])
    return Atlas(
        title=clustering.title,
        facts=facts(clustering),
        origin=clustering.origin,
        notes=notes(clustering, shown, len(rows), pictures is None),
        total=clustering.totals.images,
        images=images,
        rows=rows,
        pictures=NO_PICTURES if pictures is None else pictures,
        places=_places(mapped, rows, shown.on_map),
        method="" if mapped is None else mapped.layout.method,
        alike=np.zeros((0, 0)) if mapped is None else alike(mapped, chosen, ALIKE),
        clusters=describe_clusters(clustering, shown, row_of),
        class_names=clustering.class_names,
        counts=clustering.totals.classes.tolist(),
        history=clustering.history,
        warmup=clustering.warmup,
        alarms=clustering.alarms,
        duplicates=duplicates,
        outliers=row_of[shown.outliers].tolist(),
    )


def choose(clustering: Clustering) -> Shown:
    """Choose clusters and images for the page from numbers alone, without pictures."""
    images, mapped = clustering.images, clustering.mapped
    numbers = largest_clusters(clustering.totals.sizes)
    pairs, cosines = np.zeros((0, 2), np.int64), np.zeros(0)
    if mapped is not None:
        pairs, cosines = near_pairs(mapped.neighbours, mapped.similarity)
    return Shown(
        numbers=numbers,
        sheets=contact_sheets(images, numbers),
        outliers=listed_outliers(images),
        on_map=np.arange(0 if mapped is None else min(MAP_IMAGES, len(mapped))),
        pairs=pairs,
        cosines=cosines,
    )


def _pictures(chosen: Array, read_pictures: ReadPictures) -> Pictures | None:
    """The pictures of the chosen images in their order; they are read in order of index."""
    order = np.argsort(chosen)
    found = read_pictures(chosen[order])
    return None if found is None else found.at(np.argsort(order))


def searchable(images: Assignments, chosen: Array) -> Array:
    """The chosen images, then others in order of index as long as all paths take no more than `PATH_BYTES`."""
    others = np.setdiff1d(np.arange(len(images)), chosen)
    lengths = np.fromiter((len(images.path[place].encode()) + 3 for place in others), np.int64, len(others))
    used = sum(len(images.path[place].encode()) + 3 for place in chosen)
    return np.concatenate([chosen, others[used + np.cumsum(lengths) <= PATH_BYTES]])


def _places(mapped: MappedImages | None, rows: Array, on_map: Array) -> Array:
    """Places (R, 2) on the map, NaN for rows that are not on it."""
    places = np.full((len(rows), 2), np.nan, np.float32)
    if mapped is not None:
        is_on_map = rows < len(on_map)
        places[is_on_map] = mapped.layout.places[rows[is_on_map]]
    return places


def describe_clusters(clustering: Clustering, shown: Shown, row_of: Array) -> list[ShownCluster]:
    """The clusters of the page, in the order of `shown.numbers`."""
    totals, numbers = clustering.totals, shown.numbers
    cohesion, margin = (total / np.maximum(totals.sizes, 1) for total in (totals.similarity, totals.margin))
    cells = arrange(cluster_places(clustering, numbers))
    near, cosines = nearest_clusters(clustering.centers, numbers)
    return [
        ShownCluster(
            number=int(number),
            name=clustering.names.get(int(number), ""),
            size=int(totals.sizes[number]),
            outliers=int(totals.outliers[number]),
            cohesion=round(float(cohesion[number]), 4),
            margin=round(float(margin[number]), 4),
            cell=(int(cells[row, 0]), int(cells[row, 1])),
            near=[(int(numbers[other]), round(float(c), 4)) for other, c in zip(near[row], cosines[row], strict=True)],
            typical=row_of[shown.sheets[row].typical].tolist(),
            border=row_of[shown.sheets[row].border].tolist(),
        )
        for row, number in enumerate(numbers)
    ]


def cluster_places(clustering: Clustering, numbers: Array) -> Array:
    """A place (len(numbers), 2) for each cluster: the middle of its images on the map.

    Where there is no map, or a cluster has no image on it, the principal plane of the centres is used.
    """
    own = principal_plane(unit(clustering.centers.float())[numbers])
    if clustering.mapped is None:
        return own
    places = clustering.mapped.layout.places
    cluster = clustering.images.cluster[: len(places)]
    sizes = np.bincount(cluster, minlength=len(clustering.centers))[numbers]
    sums = [np.bincount(cluster, axis, minlength=len(clustering.centers))[numbers] for axis in places.T]
    return np.where(sizes[:, None] > 0, np.stack(sums, axis=1) / np.maximum(sizes, 1)[:, None], own)


def nearest_clusters(centers: Tensor, numbers: Array) -> tuple[Array, Array]:
    """For each of the clusters the nearest other ones, as positions in `numbers`, and their cosines."""
    rows = unit(centers.float())[numbers]
    cosines = (rows @ rows.T).fill_diagonal_(-torch.inf).topk(min(NEAR, len(numbers) - 1), dim=1)
    return cosines.indices.numpy(), cosines.values.numpy()


def facts(clustering: Clustering) -> list[tuple[str, str]]:
    """The headline: how many, how long, how good."""
    totals, history = clustering.totals, clustering.history
    sizes, similarity = totals.sizes, totals.similarity.sum() / totals.images
    last = history[-1] if history else clustering.metrics
    found = [("images", f"{totals.images:,}"), ("clusters", f"{len(sizes):,}")]
    found += [("epochs", f"{int(last['epoch']):,}")] if "epoch" in last else []
    found += [(title, f"{last[key]:.3f}") for key, title in SCORES.items() if key in last]
    found += [("smallest to largest", f"{sizes.min():,} to {sizes.max():,}")]
    found += [("mean similarity to the centre", f"{similarity:.3f}")]
    return found


def notes(clustering: Clustering, shown: Shown, searched: int, without_pictures: bool) -> list[str]:
    """What is a sample, or missing, in sentences."""
    total, looked_at, mapped = clustering.totals.images, len(clustering.images), clustering.mapped
    found = []
    if looked_at < total:
        found.append(
            f"Sizes, classes and means of the clusters cover all {total:,} images. Pictures, outliers and the search "
            f"cover a random sample of {looked_at:,}."
        )
    if without_pictures:
        found.append("There are no pictures, because the shards that the run was trained on no longer exist.")
    elif len(shown.images) < total:
        found.append(f"Pictures of {len(shown.images):,} of the {total:,} images are shown, chosen cluster by cluster.")
    if mapped is None:
        found.append("There is no map and no list of duplicates, because the run stored no features.")
    elif len(shown.on_map) < total:
        found.append(f"The map shows a random sample of {len(shown.on_map):,} images.")
    if mapped is not None and len(mapped) < total:
        found.append(f"Duplicates were searched for in a random sample of {len(mapped):,} images.")
    if len(shown.numbers) < len(clustering.centers):
        found.append(f"The {len(shown.numbers):,} largest of the {len(clustering.centers):,} clusters are shown.")
    if searched < total:
        found.append(f"{searched:,} of the {total:,} images can be searched.")
    if len(shown.outliers) == OUTLIERS:
        found.append(f"The {OUTLIERS} farthest outliers are listed; there may be more.")
    return found
