"""What a worker's loop is fed with: batches, their two views, the view of evaluation, and the probe.

Images, or with a frozen backbone its cached features: the loop is the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from torch import Tensor

from pipeline.build import build_model, build_preprocess, build_views
from pipeline.collectives import RowRange, row_range, world_size
from pipeline.data.loader import Inputs, ResidentImages, Source
from pipeline.data.reader import Piece, PieceReader, epoch_pieces, swept_pieces
from pipeline.data.streaming import ImageStream, Pipeline, Readers, StreamedImages
from pipeline.errors import DataError
from pipeline.features.cache import read_cache
from pipeline.features.embed import read_backbone
from pipeline.features.inputs import FeatureSource, as_input, split_pair
from pipeline.features.load import load_features
from pipeline.features.neighbours import read_neighbours
from pipeline.method.digpro import DigPro
from pipeline.method.encoder import Standardize
from pipeline.plan import has_estep, image_bytes, is_balanced
from pipeline.storage import Folder
from pipeline.training.job import Job
from pipeline.training.probe import PROBE_EPOCH, Probe, Views, draw_probe, read_probe

FEW_IMAGES = 8192  # a worker decodes so many itself sooner than processes for it have started


@dataclass(frozen=True)
class Feed:
    """One worker's share of the data of a run, and the model that takes it.

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
        Weights of a frozen one; empty where the encoder is trained.
    """

    inputs: Inputs
    views: Views
    preprocess: Callable[[Tensor], Tensor]
    probe: Probe | None
    model: DigPro
    backbone: dict[str, Tensor]


def open_feed(job: Job, device: torch.device) -> Feed:
    """The feed of this Ray Train worker."""
    if job.features is not None:
        first_on_node = ray.train.get_context().get_local_rank() == 0
        return feature_feed(job, Folder(job.features), device, first_on_node=first_on_node)
    config, manifest = job.config, job.manifest
    views = build_views(config, manifest)
    return Feed(
        inputs=Inputs(job.plan.order, image_source(job, device), device),
        views=views,
        preprocess=build_preprocess(config, manifest).to(device),
        probe=read_probe(config, manifest, views, device),
        model=build_model(config, job.plan.num_clusters, device),
        backbone={},
    )


def image_source(job: Job, device: torch.device) -> Source:
    """This worker's images, in memory or as they come."""
    order, config = job.plan.order, job.config
    own, size = order.images_of(row_range(order.lanes)), config.data.decoding["size"]
    if job.plan.mode == "streaming":
        return StreamedImages(partial(begin_stream, job), own, size, device, config.estep.batch_size)
    return ResidentImages(fetch_images(job, own).to(device), own, config.estep.batch_size)


def fetch_images(job: Job, own: RowRange) -> Tensor:
    """The decoded images (n, S, S, 3) uint8 of a share; read in this process where readers would start later."""
    count, size = own.stop - own.start, job.config.data.decoding["size"]
    images, done = torch.empty((count, size, size, 3), dtype=torch.uint8), 0
    if count <= FEW_IMAGES:
        blocks = PieceReader(*reader_arguments(job)).blocks(np.arange(*own[:2]))
    else:
        blocks = open_pipeline(job).blocks(swept_pieces(own), count)
    for block in blocks:
        index, done = block["index"], done + len(block["index"])
        images[index - own.start] = torch.from_numpy(block["image"])
    assert done == count
    return images


def begin_stream(job: Job, at: tuple[int, int] | None) -> ImageStream:
    """The images of the rest of a run, from (epoch, step) on or, where it is None, from the first E-step."""
    order = job.plan.order
    lanes, epochs = row_range(order.lanes), job.config.optim.epochs
    own = order.images_of(lanes)
    share = order.window * (own.stop - own.start) // order.num_images
    images = 2 * (epochs - (at or (0, 0))[0]) * (own.stop - own.start)
    # Windows begin staggered, so that half of them has to be there at the start of an epoch.
    return ImageStream(
        open_pipeline(job).blocks(schedule(job, lanes, at), images), room=share if order.covers else share // 2
    )


def schedule(job: Job, lanes: RowRange, at: tuple[int, int] | None) -> Iterator[Piece]:
    """All that a worker with these lanes reads from where its run begins, in the order in which it needs it."""
    order, config = job.plan.order, job.config
    swept = swept_pieces(order.images_of(lanes))
    if at is None:
        yield from swept
    first_epoch, first_step = at or (0, 0)
    for epoch in range(first_epoch, config.optim.epochs):
        step = first_step if epoch == first_epoch else 0
        steps = range(step, step + 1 if config.profile.only == "compute" else order.steps)
        yield from epoch_pieces(order, lanes, epoch, steps, whole=is_balanced(config, epoch))
        if has_estep(config, epoch + 1):
            yield from swept


def open_pipeline(job: Job) -> Pipeline:
    """The reading processes of this worker: they share the CPUs that the workers leave."""
    left = job.reading_cpus
    if left is None:
        own = ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)
        left = ray.cluster_resources().get("CPU", 0.0) - own * world_size()
    return Pipeline(reader_arguments(job), Readers.of(left / world_size()), image_bytes(job.config))


def reader_arguments(job: Job) -> tuple[Any, ...]:
    """Of `PieceReader`."""
    return job.plan.order, job.config.data.path, job.manifest, job.config.data.decoding


def feature_feed(job: Job, folder: Folder, device: torch.device, *, first_on_node: bool) -> Feed:
    """The feed from a cache; DataError when it is gone."""
    config = job.config
    if (cache := read_cache(folder)) is None:
        raise DataError(f"{folder.path} holds no cached features any more; run the same command again")
    limit = config.data.resident_limit_gb if config.data.mode != "streaming" else 0.0
    features = load_features(folder, cache, device, limit_gb=limit, first_on_node=first_on_node)
    source = FeatureSource(
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
        probe=feature_probe(source, config.estep.probe, config.estep.batch_size),
        model=build_feature_model(job, features, device),
        backbone=read_backbone(folder),
    )


def build_feature_model(job: Job, features: Tensor, device: torch.device) -> DigPro:
    """The heads, with the features' statistics in both encoders."""
    model = build_model(job.config, job.plan.num_clusters, device, cached_size=features.shape[2])
    for network in (model.networks.online, model.networks.target):
        encoder = network.get_submodule("encoder")
        assert isinstance(encoder, Standardize)
        encoder.fit(block[:, 0].to(device) for block in features.split(job.config.estep.batch_size))
    return model


def feature_probe(source: FeatureSource, count: int, block_size: int) -> Probe | None:
    """This worker's part of the probe: two augmented views of the first `count` images, drawn once."""
    if count == 0:
        return None
    start, stop, total = row_range(min(count, len(source.features)))
    index = torch.arange(start, stop, device=source.features.device)
    return draw_probe(split_pair, source.pairs(index, PROBE_EPOCH), index, total, block_size)
