"""Choose what an atlas shows: which clusters, which of their images, which outliers and duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.inference.predict import OUTLIER

CLUSTERS = 2_000  # shown at most, the largest ones
CONTACTS = 12_000  # images on the contact sheets of all clusters together
LARGEST_SHEET, SMALLEST_SHEET = 72, 6  # images on the contact sheet of one cluster
OUTLIERS, PAIRS = 200, 300  # listed at most
DUPLICATE = 0.99  # cosine above which two images are compared as pictures
IDENTICAL, ALIKE = 1.5, 8.0  # largest mean pixel difference, of 255, of such pictures
Array = np.ndarray[Any, Any]
Likeness = Literal["identical", "alike", "not compared"]


@dataclass(frozen=True)
class Assignments:
    """The clustering of the first N images of a data set, as columns by index.

    Attributes
    ----------
    path : sequence of str
        Where each image stood in the source.
    cluster, runner_up : int64 ndarray (N,)
        Nearest and second nearest centre.
    similarity, margin, outlier : float32 ndarray (N,)
        Cosine to the own centre; how much that exceeds the cosine to the runner-up; and its robust z-score below the
        median of the cluster.
    label : int64 ndarray (N,) or None
        Class, -1 where unknown; None when no image has one.
    """

    path: Sequence[str]
    cluster: Array
    runner_up: Array
    similarity: Array
    margin: Array
    outlier: Array
    label: Array | None = None

    def __len__(self) -> int:
        return len(self.cluster)


@dataclass(frozen=True)
class ClusterTotals:
    """Counts and sums over all images of a data set, while `Assignments` may hold only the first of them.

    Attributes
    ----------
    sizes, outliers : int64 ndarray (K,)
        Images of each cluster, and outliers among them.
    similarity, margin : float64 ndarray (K,)
        Sums over the images of each cluster.
    classes : int64 ndarray (p, 3)
        (class, cluster, images) for every pair that occurs among images with a known class, sorted.
    """

    sizes: Array
    outliers: Array
    similarity: Array
    margin: Array
    classes: Array

    @property
    def images(self) -> int:
        """Number of all images."""
        return int(self.sizes.sum())

    def plus(self, other: ClusterTotals) -> ClusterTotals:
        """The totals of both sets of images together."""
        return ClusterTotals(
            self.sizes + other.sizes,
            self.outliers + other.outliers,
            self.similarity + other.similarity,
            self.margin + other.margin,
            _sum_pairs(np.concatenate([self.classes, other.classes])),
        )

    def majority(self, cluster: int) -> tuple[int, float] | None:
        """Most frequent class of a cluster, and its share of the images with a known class; None if there are none."""
        classes, _, images = self.classes[self.classes[:, 1] == cluster].T
        return (int(classes[images.argmax()]), float(images.max() / images.sum())) if len(classes) else None


def count_images(images: Assignments, num_clusters: int) -> ClusterTotals:
    """Counts and sums over some images; `ClusterTotals.plus` adds up those of all."""

    def each(weights: Array | None = None) -> Array:
        return np.bincount(images.cluster, weights, minlength=num_clusters)

    outliers = np.bincount(images.cluster[images.outlier > OUTLIER], minlength=num_clusters)
    return ClusterTotals(each(), outliers, each(images.similarity), each(images.margin), count_classes(images))


@dataclass(frozen=True)
class ContactSheet:
    """Images of one cluster: those nearest its centre, nearest first, and those at the border, nearest to it first."""

    typical: Array
    border: Array

    @property
    def images(self) -> Array:
        """All images of the sheet."""
        return np.concatenate([self.typical, self.border])


@dataclass(frozen=True)
class Duplicate:
    """Two images that are likely the same."""

    first: int
    second: int
    similarity: float
    likeness: Likeness


def largest_clusters(sizes: Array) -> Array:
    """Numbers of the clusters to show, given the sizes (K,): all, or the `CLUSTERS` largest; sorted."""
    return np.sort(np.argsort(-sizes, kind="stable")[:CLUSTERS])


def contact_sheets(images: Assignments, numbers: Array) -> list[ContactSheet]:
    """The contact sheet of each of the clusters in `numbers`; the more clusters, the smaller the sheets.

    Two thirds of a sheet are typical images. An image at the border is not shown as typical at the same time.
    """
    total = int(np.clip(CONTACTS // max(1, len(numbers)), SMALLEST_SHEET, LARGEST_SHEET))
    order = np.lexsort((-images.similarity, images.cluster))
    starts = np.searchsorted(images.cluster[order], numbers, side="left")
    stops = np.searchsorted(images.cluster[order], numbers, side="right")
    sheets = []
    for start, stop in zip(starts, stops, strict=True):
        members = order[start:stop]
        border = min(total, len(members)) // 3
        typical, others = np.split(members, [min(total, len(members)) - border])
        sheets.append(ContactSheet(typical, others[np.argsort(images.margin[others], kind="stable")][:border]))
    return sheets


def listed_outliers(images: Assignments) -> Array:
    """Indices of the images that are outliers of their cluster, the farthest first; `OUTLIERS` at most."""
    order = np.argsort(-images.outlier, kind="stable")[:OUTLIERS]
    return order[images.outlier[order] > OUTLIER]


def near_pairs(neighbours: Array, similarity: Array) -> tuple[Array, Array]:
    """Pairs of images so similar that they may be duplicates: (pairs (p, 2), cosines (p,)), the most similar first.

    Parameters
    ----------
    neighbours, similarity : ndarray (n, k)
        The nearest images of each image, and their cosines.
    """
    rows, columns = np.nonzero(similarity >= DUPLICATE)
    pairs = np.sort(np.stack([rows, neighbours[rows, columns]], axis=1), axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    cosines = similarity[rows, columns][first]
    best = np.argsort(-cosines, kind="stable")[:PAIRS]
    return pairs[best], cosines[best]


def judge_pairs(pairs: Array, cosines: Array, pictures: Array | None) -> list[Duplicate]:
    """The pairs whose pictures are alike too, identical ones first; all pairs if there are no pictures.

    The features of a clustering put images of one kind together, so that two of them can be as near as two copies of
    one image. The pixels tell them apart.

    Parameters
    ----------
    pictures : uint8 ndarray (p, 2, H, W, 3) or None
    """
    if pictures is None:
        return [Duplicate(int(a), int(b), float(c), "not compared") for (a, b), c in zip(pairs, cosines, strict=True)]
    difference = np.abs(pictures[:, 0].astype(np.int16) - pictures[:, 1]).mean(axis=(1, 2, 3))
    kept = [place for place in np.argsort(difference, kind="stable") if difference[place] <= ALIKE]
    return [
        Duplicate(
            int(pairs[place][0]),
            int(pairs[place][1]),
            float(cosines[place]),
            "identical" if difference[place] <= IDENTICAL else "alike",
        )
        for place in kept
    ]


def count_classes(images: Assignments) -> Array:
    """(class, cluster, images) int64 (p, 3), sorted, for every pair that occurs among images with a known class."""
    if images.label is None:
        return np.zeros((0, 3), np.int64)
    known = images.label >= 0
    return _sum_pairs(np.stack([images.label[known], images.cluster[known], np.ones(known.sum(), np.int64)], axis=1))


def _sum_pairs(counts: Array) -> Array:
    """Rows (class, cluster, images) with each pair once, sorted."""
    pairs, places = np.unique(counts[:, :2], axis=0, return_inverse=True)
    images = np.zeros(len(pairs), np.int64)
    np.add.at(images, places, counts[:, 2])
    return np.column_stack([pairs, images])
