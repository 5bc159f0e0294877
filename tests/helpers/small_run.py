"""A small run without Ray: digits in memory, with the real step and E-step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.build import (
    build_model,
    build_preprocess,
    build_views,
    settle_images,
)
from pipeline.collectives import RowRange, gather_rows, row_range
from pipeline.config.loading import load_config
from pipeline.data.decode import decode_table
from pipeline.data.ingest import ingest
from pipeline.data.loader import Inputs, ResidentImages
from pipeline.data.order import Order
from pipeline.data.read import read_sample
from pipeline.data.shards import Manifest
from pipeline.plan import make_plan
from pipeline.tracking import RunRef
from pipeline.training.feed import Feed
from pipeline.training.job import Job
from pipeline.training.probe import Probe, Views, draw_probe
from pipeline.training.progress import Reporter
from pipeline.training.run import Run, new_run
from pipeline.training.state import PseudoLabels

IMAGES = 200  # four steps of 48 images
SMALL = [
    "optim.precision=float32",  # the same on every processor
    "optim.epochs=4",
    "optim.warmup_epochs=1",
    "optim.batch_size=48",
    "method.bank_size=64",
    "method.num_groups=null",
    "method.reset_every=10",
    "method.group_weight=0.1",
    "method.group_temperature=0.1",
    "method.prototype_temperature=0.5",
    "method.latent_noise=0.001",
    "method.target_momentum=0.986",
    "method.prototype_weight=0.5",
    "model.projector_hidden=32",
    "model.predictor_hidden=32",
    "model.feature_size=16",
    "estep.probe=64",
]


def digits(folder: Path) -> tuple[Tensor, Manifest]:
    """The first images of digits as uint8 (n, 16, 16, 3), and their manifest."""
    manifest = ingest("digits", str(folder))
    images = decode_table(read_sample(str(folder), manifest, 10**6), 16)["image"]
    return torch.from_numpy(images[:IMAGES]), manifest.model_copy(update={"num_images": IMAGES})


def small_job(manifest: Manifest, *overrides: str) -> Job:
    """A job of digits without tracking."""
    config = settle_images(load_config("digits", ["name=small", *SMALL, *overrides]))
    tracking = RunRef("sqlite:///none", "none", "digpro", "small", {}, {})
    return Job(config, manifest, make_plan(config, manifest), tracking)


def small_run(images: Tensor, manifest: Manifest, *overrides: str, double: bool = False) -> Run:
    """A run of this process, together with the other processes of the process group, if any."""
    job = small_job(manifest, *overrides, *(["optim.precision=float64"] if double else []))
    config = job.config
    views = build_views(config, manifest)
    feed = Feed(
        inputs=resident_inputs(images, job.plan.order, block_size=50),
        views=views,
        preprocess=build_preprocess(config, manifest),
        probe=_probe(images, views, config.estep.probe),
        model=build_model(config, job.plan.num_clusters, torch.device("cpu")),
        backbone={},
    )
    return new_run(job, feed, Reporter())


def resident_inputs(images: Tensor, order: Order, block_size: int) -> Inputs:
    """Inputs of this process's share of all images (N, H, W, 3)."""
    own = order.images_of(row_range(order.lanes))
    return Inputs(order, ResidentImages(images[own.start : own.stop], own, block_size), images.device)


def _probe(images: Tensor, views: Views, count: int) -> Probe | None:
    """The same as `read_probe`, from images in memory."""
    start, stop, total = row_range(min(count, len(images)))
    return draw_probe(views, images[start:stop], torch.arange(start, stop), total, 50) if count else None


def give_labels(run: Run) -> None:
    """Pseudo-labels without an E-step: 0, 1, ... in turn for all images, on every worker."""
    groups = run.state.model.groups.features
    labels = torch.arange(IMAGES, dtype=torch.int32) % len(groups)
    run.state.pseudo = PseudoLabels(labels, groups, RowRange(0, IMAGES, IMAGES))


def snapshot(run: Run) -> dict[str, Any]:
    """Everything that must be equal in two runs, with the pseudo-labels of all images; all workers call it."""
    state = run.state
    assert state.pseudo is not None
    return {
        **{name: value.clone() for name, value in state.model.state_dict().items() if name != "bank.rows"},
        "bank": state.model.bank.gather(),
        "labels": gather_rows(state.pseudo.labels),
        "centers": state.pseudo.centers.clone(),
    }
