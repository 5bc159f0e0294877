"""The page of a comparison: how far runs agree, cluster by cluster, and the images that moved; one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.bundle import as_column, as_json, bundle
from pipeline.report.sprites import Pictures

UNSTABLE, STABLE = 0.6, 0.85  # limits of Hennig (2007)
FLOWS = 20_000  # of all runs together, the largest: they take about 300 kB of the page
SCRIPTS = (
    "elements.js",
    "comparison_data.js",
    "selection.js",
    "pictures.js",
    "comparison_images.js",
    "navigation.js",
    "comparison_clusters.js",
    "comparison_flows.js",
    "comparison_app.js",
)
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs.

    Attributes
    ----------
    name : str
    atlas : str
        Address of its atlas as the page links to it; empty without one.
    names : mapping
        Number of a cluster -> the name that a person gave it.
    sizes : int ndarray (K_r,)
        Images in each of its clusters.
    match : int ndarray (K_r,)
        The cluster of the first run that each of its clusters is matched to; -1 for none.
    common : int ndarray (K_r,)
        Images that are in a cluster and in the one that it is matched to.
    flows : int ndarray (F, 3)
        Cluster of the first run, cluster of this run that is not matched to it, and the images in both; the largest
        come first.
    """

    name: str
    atlas: str
    names: Mapping[int, str]
    sizes: Array
    match: Array
    common: Array
    flows: Array


@dataclass(frozen=True)
class MovedImages:
    """A sample of the images that moved, those of a cluster of the first run together.

    Attributes
    ----------
    index : int ndarray (n,)
    path : sequence of str
    clusters : int ndarray (R, n)
        In each run, as that run numbers them.
    elsewhere : int ndarray (n,)
        Runs that disagree with the first one.
    agreement : ndarray (n,)
        Share of the runs that agree on an image.
    pictures : Pictures
        n of them.
    """

    index: Array
    path: Sequence[str]
    clusters: Array
    elsewhere: Array
    agreement: Array
    pictures: Pictures


@dataclass(frozen=True)
class Comparison:
    """Runs on the same images, as plain values.

    Attributes
    ----------
    runs : sequence of ComparedRun
        R of them; the others are compared with the first.
    ari, nmi : ndarray (R, R)
    stability : ndarray (K,)
        Of each cluster of the first run: the mean Jaccard index with the most similar cluster of each other run.
    moved : int ndarray (K,)
        Images of each cluster of the first run that another run puts elsewhere.
    images : int
    agreement : float
        Mean over all images of the share of the runs that agree.
    sample : MovedImages
    """

    runs: Sequence[ComparedRun]
    ari: Array
    nmi: Array
    stability: Array
    moved: Array
    images: int
    agreement: float
    sample: MovedImages


def comparison_page(found: Comparison) -> str:
    """The page as HTML; texts from outside are data in it and never markup."""
    title = f"Comparison of {len(found.runs)} runs"
    sample, most_flows = found.sample, FLOWS // max(1, len(found.runs) - 1)
    values = {
        "title": title,
        "runs": [_run_values(run, most_flows) for run in found.runs],
        "ari": found.ari.round(4).tolist(),
        "nmi": found.nmi.round(4).tolist(),
        "stability": found.stability.round(4).tolist(),
        "moved": found.moved.tolist(),
        "images": found.images,
        "agreement": found.agreement,
        "limits": [UNSTABLE, STABLE],
        "paths": list(sample.path),
        "columns": {
            "index": as_column(sample.index.astype(np.int32)),
            "clusters": as_column(sample.clusters.astype(np.int32)),
            "elsewhere": as_column(sample.elsewhere.astype(np.int32)),
            "agreement": as_column(sample.agreement.astype(np.float32)),
        },
    }
    return bundle("comparison.html", SCRIPTS, title, as_json(values), sample.pictures)


def _run_values(run: ComparedRun, most_flows: int) -> dict[str, Any]:
    return {
        "name": run.name,
        "atlas": run.atlas,
        "names": dict(run.names),
        "sizes": run.sizes.tolist(),
        "match": run.match.tolist(),
        "common": run.common.tolist(),
        "flows": run.flows[:most_flows].tolist(),
        "numFlows": len(run.flows),
    }
