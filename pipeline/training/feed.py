"""What a worker's loop is fed with: batches, their two views, the evaluation view, and the probe.

The inputs are images or, with a frozen backbone, its cached features; the loop is the same for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ray.train
import torch
from torch import Tensor

from pipeline.backbone_features.cache import read_backbone, read_cache
from pipeline.backbone_features.inputs import CachedFeatures, as_input, split_pair
from pipeline.backbone_features.load import load_backbone_features
from pipeline.backbone_features.neighbours import read_neighbours
from pipeline.build import build_model, build_preprocess, build_views
from pipeline.collectives import row_range
from pipeline.data.loader import Inputs, InputSource
from pipeline.errors import DataError
from pipeline.method.digpro import DigPro
from pipeline.method.encoder import Standardize
from pipeline.storage import Folder
from pipeline.training.images import image_source
from pipeline.training.job import Job
from pipeline.training.probe import PROBE_EPOCH, Probe, Views, draw_probe, read_probe


@dataclass(frozen=True)
class Feed:
    """One worker's share of a run's data, and the model that trains on it.

    Attributes
    ----------
    inputs : Inputs
    views : callable
        (inputs (B, ...), index (B,), epoch) to the two views.
    preprocess : callable
        Un-augmented inputs to what the network takes.
    probe : Probe or None
        None when label-free metrics are switched off.
    model : DigPro
    backbone : dict of Tensor
        Weights of a frozen backbone; empty when the encoder is trained.
    """

    inputs: Inputs
    views: Views
    preprocess: Callable[[Tensor], Tensor]
    probe: Probe | None
    model: DigPro
    backbone: dict[str, Tensor]


def open_feed(job: Job, device: torch.device) -> Feed:
    """The feed of this Ray Train worker."""
    if job.feature_cache is not None:
        first_on_node = ray.train.get_context().get_local_rank() == 0
        return cached_feed(job, Folder(job.feature_cache), device, first_on_node=first_on_node)
    return image_feed(job, image_source(job, device), device)


def image_feed(job: Job, source: InputSource, device: torch.device) -> Feed:
    """The feed of images."""
    config, manifest = job.config, job.manifest
    views = build_views(config, manifest)
    return Feed(
        inputs=Inputs(job.plan.order, source, device),
        views=views,
        preprocess=build_preprocess(config, manifest).to(device),
        probe=read_probe(config, manifest, views, device),
        model=build_model(config, job.plan.num_clusters, device),
        backbone={},
    )


def cached_feed(job: Job, folder: Folder, device: torch.device, *, first_on_node: bool) -> Feed:
    """The feed from a cache; DataError when it is gone."""
    config = job.config
    if (cache := read_cache(folder)) is None:
        raise DataError(f"{folder.path} no longer holds cached features; run the same command again to compute them")
    limit = config.data.resident_limit_gb if config.data.mode != "streaming" else 0.0
    features = load_backbone_features(folder, cache, device, limit_gb=limit, first_on_node=first_on_node)
    source = CachedFeatures(
        features,
        device,
        neighbours=read_neighbours(folder, config.views.neighbours, features.device),
        own=job.plan.order.images_of(row_range(job.plan.order.lanes)),
        seed=config.seed,
        block_size=config.estep.batch_size,
    )
    return Feed(
        inputs=Inputs(job.plan.order, source, device),
        views=split_pair,
        preprocess=as_input,
        probe=cached_probe(source, config.estep.probe, config.estep.batch_size),
        model=build_heads(job, features, device),
        backbone=read_backbone(folder),
    )


def build_heads(job: Job, features: Tensor, device: torch.device) -> DigPro:
    """The heads, with the features' statistics in both encoders."""
    model = build_model(job.config, job.plan.num_clusters, device, cached_size=features.shape[2])
    for network in (model.networks.online, model.networks.target):
        encoder = network.get_submodule("encoder")
        assert isinstance(encoder, Standardize)
        encoder.fit(block[:, 0].to(device) for block in features.split(job.config.estep.batch_size))
    return model


def cached_probe(source: CachedFeatures, count: int, block_size: int) -> Probe | None:
    """This worker's part of the probe: two augmented views of the first `count` images, drawn once."""
    if count == 0:
        return None
    start, stop, total = row_range(min(count, len(source.features)))
    index = torch.arange(start, stop, device=source.features.device)
    return draw_probe(split_pair, source.pairs(index, PROBE_EPOCH), index, total, block_size)
