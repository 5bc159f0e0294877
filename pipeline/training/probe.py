"""Label-free metrics of an E-step, from a fixed sample of the images; docs/objectives.md says what each cannot see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.clustering.label_free import assignment_agreement, cosine_silhouette, prototype_margin
from pipeline.clustering.nearest import nearest_center
from pipeline.collectives import gather_rows, rank, row_range
from pipeline.config.models import RunConfig
from pipeline.data.decode import decode_table
from pipeline.data.read import read_sample
from pipeline.data.shards import Manifest
from pipeline.method.digpro import DigPro
from pipeline.training.state import PseudoLabels

Views = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Inputs (B, ...), their index (B,) and an epoch to two views, as `TwoViews` makes them."""
PROBE_EPOCH = -1  # keys the probe's views: the same in all epochs, and different from those of training


@dataclass(frozen=True)
class Probe:
    """Two augmented views of the first `total` images of the set, a fair sample that every E-step uses again.

    `views` are this worker's part, a pair (n, ...) for each pass. Making them anew each time would take as long as
    encoding half of them.
    """

    views: tuple[tuple[Tensor, Tensor], ...]
    total: int


def draw_probe(views: Views, inputs: Tensor, index: Tensor, total: int, block_size: int) -> Probe:
    """The probe of `total` images, from this worker's inputs (n, ...), in the form of a batch, and index (n,)."""
    parts = zip(inputs.split(block_size), index.split(block_size), strict=True)
    return Probe(tuple(views(own, numbers, PROBE_EPOCH) for own, numbers in parts if len(own)), total)


def read_probe(config: RunConfig, manifest: Manifest, views: Views, device: torch.device) -> Probe | None:
    """This worker's part of the probe, from the shards; None when `estep.probe` is 0."""
    if config.estep.probe == 0:
        return None
    start, stop, total = row_range(min(config.estep.probe, manifest.num_images))
    table = read_sample(config.data.path, manifest, total).slice(start, stop - start)
    images = torch.from_numpy(decode_table(table, **config.data.decoding)["image"]).to(device)
    index = torch.arange(start, stop, device=device)
    return draw_probe(views, images, index, total, config.estep.batch_size)


def label_free_metrics(model: DigPro, probe: Probe, features: Tensor, found: PseudoLabels) -> dict[str, float]:
    """Metrics of the pseudo-labels `found` from the workers' features (own rows, D), on rank 0; others have none.

    With a single start of k-means there is no `seed_agreement`.
    """
    probe_features, labels = gather_probe(probe, features, found)
    margin, of_views = prototype_margin(features, found.centers), view_clusters(model, probe, found.centers)
    if rank():
        return {}
    values = {
        "silhouette": cosine_silhouette(probe_features, labels),
        "prototype_margin": margin,
        "view_agreement": assignment_agreement(*of_views.cpu().T),
    }
    if found.others is not None and len(found.others):
        values["seed_agreement"] = seed_agreement(probe_features, labels, found.others)
    return values


def gather_probe(probe: Probe, features: Tensor, found: PseudoLabels) -> tuple[Tensor, Tensor]:
    """Features (total, D) and pseudo-labels (total,) int64 of the probe's images, gathered from their owners."""
    mine = slice(max(0, probe.total - found.own.start))
    labels = found.labels[mine, None].to(features.dtype)  # in one exchange; exact up to 2**24 clusters
    rows = gather_rows(torch.cat([features[mine], labels], dim=1))
    return rows[:, :-1], rows[:, -1].long()


def seed_agreement(features: Tensor, labels: Tensor, others: Tensor) -> float:
    """Mean agreement of the labels (n,) of features (n, D) with those by the centres (R, K, D) of other seeds."""
    agreements = [
        assignment_agreement(labels.cpu(), nearest_center(features, centers).labels.cpu()) for centers in others
    ]
    return sum(agreements) / len(agreements)


def view_clusters(model: DigPro, probe: Probe, centers: Tensor) -> Tensor:
    """Clusters (total, 2) of both views of every probe image."""
    found = [torch.empty((0, 2), dtype=torch.int64, device=centers.device)]  # for a worker without probe images
    for pair in probe.views:
        found.append(torch.stack([nearest_center(model.encode(view), centers).labels for view in pair], dim=1))
    return gather_rows(torch.cat(found))
