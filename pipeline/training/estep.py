"""The E-step: features of every image, and from them pseudo-labels (DigPro section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.backbone_features.inputs import CachedFeatures
from pipeline.clustering.hierarchical import hierarchical_kmeans
from pipeline.clustering.kmeans import KMeansResult, spherical_kmeans
from pipeline.clustering.label_free import LABEL_FREE_WEIGHTS, label_free_score
from pipeline.clustering.scores import class_table, contingency_scores, contingency_table
from pipeline.collectives import RowRange
from pipeline.config.models import EStepConfig
from pipeline.data.loader import Inputs
from pipeline.inference.run_features import write_features
from pipeline.method.digpro import DigPro
from pipeline.method.losses import unit
from pipeline.training.health import change_metrics, feature_spread, rank_spread, size_metrics
from pipeline.training.monitors import monitor_metrics
from pipeline.training.probe import label_free_metrics
from pipeline.training.run import Run
from pipeline.training.state import PseudoLabels

MANY_CLUSTERS = 10_000  # from here on comparing each image with all centres takes longer than encoding it


def run_estep(run: Run) -> None:
    """Compute new pseudo-labels; their health and their scores, without and with classes, become epoch metrics."""
    state, job = run.state, run.job
    last = state.epochs_done == job.config.optim.epochs
    if last:  # no step follows, and the labels must be those of the exported model, which computes in float32
        state.model.autocast = None
    with run.timer.time("estep"):
        seen, features = encode(run)
        metrics = estimate_labels(run, features)
    with run.timer.time("evaluate"):
        metrics |= score_labels(run, features, metrics)
    assert state.pseudo is not None
    if last:  # before the last checkpoint, so that the features exist whenever it does
        with run.timer.time("checkpoint"):
            write_features(job.folder, features, state.pseudo.centers, state.pseudo.own, seen)
    if run.monitors:
        with run.timer.time("monitor"):
            metrics |= monitor_metrics(run.monitors, features, job.config, state.epochs_done)
    spread = {"group_rank_spread": rank_spread(state.model.groups.features)}
    state.history.append({"epoch": state.epochs_done, **metrics, **spread})


def encode(run: Run) -> tuple[Tensor | None, Tensor]:
    """Features (own rows, D) of the images as the model sees them, if others are clustered; and those that are.

    With `estep.fit_views` each image has the mean over its views: the effect of crops and colours differs from view to
    view, while the content of the image stays the same.
    """
    features = encode_all(run.state.model, run.feed.inputs, run.feed.preprocess)
    if not run.job.config.estep.fit_views:
        return None, features
    assert isinstance(run.feed.inputs.source, CachedFeatures)
    return features, mean_over_views(run.state.model, run.feed.inputs.source, run.feed.preprocess, features)


def estimate_labels(run: Run, features: Tensor) -> dict[str, float]:
    """New pseudo-labels from features (own rows, D); returns the health of both."""
    state, config, plan = run.state, run.job.config, run.job.plan
    own = run.feed.inputs.own
    state.pseudo, health = estimate(features, own, plan.num_clusters, config.estep, config.seed, state.pseudo)
    return health


def score_labels(run: Run, features: Tensor, health: Mapping[str, float]) -> dict[str, float]:
    """Label-free metrics of the pseudo-labels of features (own rows, D), and scores where classes are known.

    Only rank 0 has them. The first E-step has no earlier one to agree with, so it has no `label_free`.
    """
    found, scores = run.state.pseudo, dict[str, float]()
    assert found is not None
    if run.feed.probe:
        scores = label_free_metrics(run.state.model, run.feed.probe, features, found)
    if LABEL_FREE_WEIGHTS.keys() <= {*health, *scores}:
        scores["label_free"] = label_free_score({**health, **scores})
    if run.classes is not None:
        table = class_table(torch.as_tensor(run.classes, device=features.device), found.labels, len(found.centers))
        scores |= {} if table is None else contingency_scores(table)
    return scores


def encode_all(model: DigPro, inputs: Inputs, preprocess: Callable[[Tensor], Tensor]) -> Tensor:
    """Target features (own rows, D) of this worker's images, un-augmented, in the order of their index.

    Raises
    ------
    ValueError
        When the inputs do not yield one row for each of this worker's images.
    """
    return _encode(model, inputs.blocks(), preprocess, inputs.own)


def _encode(
    model: DigPro, blocks: Iterable[tuple[Tensor, Tensor]], preprocess: Callable[[Tensor], Tensor], own: RowRange
) -> Tensor:
    """Target features (own rows, D) of blocks, written into one tensor: to join parts would take the memory twice."""
    features, read = model.groups.features.new_empty((own.size, model.groups.features.shape[1])), 0
    for block, _ in blocks:
        part, place = model.encode(preprocess(block)), features[read : read + len(block)]
        place.copy_(part[: len(place)])
        read += len(block)
    if read != own.size:
        raise ValueError(
            f"{read} images were read for the {own.size} rows {own.start} to {own.stop - 1} of {own.total}; "
            "ingest the source again"
        )
    return features


def mean_over_views(
    model: DigPro, inputs: CachedFeatures, preprocess: Callable[[Tensor], Tensor], features: Tensor
) -> Tensor:
    """Mean of each image's un-augmented features (own rows, D) and those of its cached views, on the unit sphere."""
    mean = features.clone()
    for view in range(1, inputs.features.shape[1]):
        mean += _encode(model, inputs.blocks(view), preprocess, inputs.own)
    return unit(mean)


def _cluster(features: Tensor, num_clusters: int, settings: EStepConfig, seed: int) -> KMeansResult:
    """K-means as configured; hierarchical for very many clusters."""
    options: dict[str, Any] = {
        "restarts": settings.restarts,
        "max_iter": settings.max_iter,
        "tol": settings.tol,
        "seed": seed,
        "empty": "reseed",
        "fit_rows": settings.fit_rows,
    }
    method = hierarchical_kmeans if num_clusters >= MANY_CLUSTERS else spherical_kmeans
    return method(features, num_clusters, **options)


def estimate(
    features: Tensor,
    own: RowRange,
    num_clusters: int,
    settings: EStepConfig,
    seed: int,
    previous: PseudoLabels | None,
) -> tuple[PseudoLabels, dict[str, float]]:
    """Cluster the workers' features (own rows, D); returns their pseudo-labels, and the health of both."""
    result = _cluster(features, num_clusters, settings, seed)
    found = PseudoLabels(result.labels.int(), result.centers, own, result.others)
    health = {"inertia": result.inertia / own.total, "kmeans_iterations": float(result.n_iter)}
    return found, health | label_health(found, previous) | {"feature_spread": feature_spread(features)}


def label_health(found: PseudoLabels, previous: PseudoLabels | None) -> dict[str, float]:
    """Metrics of the clusters' sizes and, after the first E-step, of the change since the one before.

    Only rank 0 computes the change, because matching clusters is costly.
    """
    sizes = size_metrics(found.sizes())
    if previous is None:
        return sizes
    moves = contingency_table(previous.labels, found.labels, (len(previous.centers), len(found.centers)))
    return sizes if moves is None else sizes | change_metrics(moves)
