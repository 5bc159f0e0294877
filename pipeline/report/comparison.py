"""The page of a comparison: how far runs agree, cluster by cluster, and the images on which they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.html import heading, html_page, image, paragraph, table
from pipeline.report.sprites import strip_png

UNSTABLE, STABLE = 0.6, 0.85  # limits of Hennig (2007)
STYLE = (
    "tr.unstable { background: light-dark(#fbeaea, #45211f) } tr.stable { background: light-dark(#e8f4e8, #1f3a26) }\n"
)
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Comparison:
    """Runs on the same images, as plain values.

    Attributes
    ----------
    names : sequence of str
        Of the R runs; clusters are those of the first.
    ari, nmi : ndarray (R, R)
    titles : sequence of str
        Of the K clusters of the first run.
    sizes : ndarray (K,)
    stability : ndarray (K,)
        Mean Jaccard index with the most similar cluster of each other run.
    moved : ndarray (K,)
        Images of each cluster that another run puts elsewhere.
    images : int
    pictures : mapping
        Cluster -> tiles uint8 (n, side, side, 3) of images that moved.
    """

    names: Sequence[str]
    ari: Array
    nmi: Array
    titles: Sequence[str]
    sizes: Array
    stability: Array
    moved: Array
    images: int
    pictures: Mapping[int, Array]


def comparison_page(found: Comparison) -> str:
    """The page as HTML."""
    runs = ", ".join(found.names)
    share = found.moved.sum() / found.images
    body = [
        paragraph(f"{found.images:,} images, {len(found.names)} runs: {runs}. Clusters are those of {found.names[0]}."),
        paragraph(f"{found.moved.sum():,} images ({share:.1%}) are in a different cluster in at least one other run."),
        heading("Agreement of the runs"),
        paragraph("Adjusted Rand index: 1 for the same clusters, about 0 for random ones."),
        _square(found.names, found.ari),
        paragraph("Normalised mutual information: 1 for the same clusters."),
        _square(found.names, found.nmi),
        heading("Stability of the clusters"),
        paragraph(
            "The mean Jaccard index of a cluster and the most similar cluster of each other run (Hennig 2007). Below "
            f"{UNSTABLE} a cluster is unreliable, above {STABLE} it is found again in every run."
        ),
        table(["cluster", "images", "stability", "moved"], _rows(found)),
        heading("Images that moved"),
        paragraph("Images that most other runs put into a different cluster come first."),
        *_pictures(found),
    ]
    return html_page(f"Comparison of {len(found.names)} runs", body, STYLE)


def _square(names: Sequence[str], values: Array) -> str:
    return table(["", *names], [([name, *map(float, row)], "") for name, row in zip(names, values, strict=True)])


def _rows(found: Comparison) -> list[tuple[list[Any], str]]:
    order = np.argsort(found.stability, kind="stable")
    return [
        (
            [found.titles[k], int(found.sizes[k]), float(found.stability[k]), int(found.moved[k])],
            "unstable" if found.stability[k] < UNSTABLE else "stable" if found.stability[k] > STABLE else "",
        )
        for k in order
    ]


def _pictures(found: Comparison) -> list[str]:
    pieces = []
    for cluster, tiles in found.pictures.items():
        title = f"{found.titles[cluster]}: {int(found.moved[cluster]):,} moved"
        pieces += [heading(title, level=3), image(strip_png(tiles), f"{len(tiles)} images of {title}")]
    return pieces
