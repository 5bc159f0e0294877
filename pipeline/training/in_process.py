"""A training run in the calling process, without Ray: for a program that has its images in memory.

The loop computes what a worker does, with the same functions. It saves no checkpoint, and nothing resumes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.build import build_model, build_preprocess, build_run_optimizer, build_run_schedules, build_views
from pipeline.collectives import RowRange
from pipeline.data.loader import Inputs, ResidentImages
from pipeline.data.reader import PieceReader
from pipeline.plan import has_estep
from pipeline.training.checkpoint import TrainState
from pipeline.training.job import Job
from pipeline.training.probe import read_probe
from pipeline.training.progress import Reporter, progress_line
from pipeline.training.timing import EpochTimer
from pipeline.training.worker import Run, complete_epoch, run_estep, train_epoch, zero_losses


def train_in_process(job: Job, device: torch.device, echo: Callable[[str], None]) -> TrainState:
    """Train to the end, and tell of each epoch; the state has the metrics of all of them.

    Raises
    ------
    Diverged
        When losses or weights are not finite.
    """
    run = open_run_in_process(job, device)
    run_estep(run)
    _tell(run, echo)
    while run.state.epoch < job.config.optim.epochs:
        train_epoch(run, between_steps=lambda run: None)
        if has_estep(job.config, run.state.epoch):
            run_estep(run)
        _tell(run, echo)
    return run.state


def open_run_in_process(job: Job, device: torch.device) -> Run:
    """The only worker of a run on images, whose classes nobody knows."""
    config, order = job.config, job.plan.order
    model, views = build_model(config, job.plan.num_clusters, device), build_views(config, job.manifest)
    own = RowRange(0, order.num_images, order.num_images)
    source = ResidentImages(_decode_all(job).to(device), own, config.estep.batch_size)
    return Run(
        job=job,
        inputs=Inputs(order, source, device),
        views=views,
        preprocess=build_preprocess(config, job.manifest).to(device),
        probe=read_probe(config, job.manifest, views, device),
        labels=None,
        state=TrainState(model, build_run_optimizer(config, model), zero_losses(device)),
        step_model=model,
        schedules=build_run_schedules(config, order.steps),
        timer=EpochTimer(device),
        reporter=Reporter(),
    )


def _decode_all(job: Job) -> Tensor:
    """The images (N, S, S, 3) uint8 in order of their index."""
    reader = PieceReader(job.plan.order, job.config.data.path, job.manifest, job.config.data.decoding)
    blocks = reader.blocks(torch.arange(job.manifest.num_images).numpy())
    return torch.cat([torch.from_numpy(block["image"]) for block in blocks])


def _tell(run: Run, echo: Callable[[str], None]) -> None:
    metrics, plan = complete_epoch(run), run.job.plan
    rate = metrics.get("images_per_second", 0.0)
    seconds = plan.images_per_epoch / rate if rate else 0.0
    echo(progress_line(metrics, run.job.config.optim.epochs, rate, seconds))
