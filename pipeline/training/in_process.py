"""A training run in the calling process, without Ray: for a program that has its images in memory.

The loop is that of a worker. It saves no checkpoint and cannot resume.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.collectives import RowRange
from pipeline.data.loader import ResidentImages
from pipeline.data.reader import PieceReader, swept_pieces
from pipeline.plan import image_bytes
from pipeline.progress import Echo
from pipeline.storage import Folder
from pipeline.training.feed import cached_feed, image_feed
from pipeline.training.job import Job
from pipeline.training.loop import complete_epoch, run_em_loop
from pipeline.training.progress import Reporter, progress_line
from pipeline.training.run import Run, new_run
from pipeline.training.state import TrainState


def train_in_process(job: Job, device: torch.device, echo: Echo) -> TrainState:
    """Train to the end and report each epoch; the returned state has the metrics of all epochs.

    Raises
    ------
    Diverged
        When losses or weights are not finite.
    """
    run = open_run_in_process(job, device)
    run_em_loop(run, finish_epoch=lambda run: _print_epoch(run, echo))
    return run.state


def open_run_in_process(job: Job, device: torch.device) -> Run:
    """The only worker of a run on images without known classes."""
    if job.feature_cache is not None:
        return new_run(job, cached_feed(job, Folder(job.feature_cache), device, first_on_node=True), Reporter())
    own = RowRange(0, job.plan.order.num_images, job.plan.order.num_images)
    source = ResidentImages(_decode(job, own).to(device), own, job.config.estep.batch_size)
    return new_run(job, image_feed(job, source, device), Reporter())


def _decode(job: Job, own: RowRange) -> Tensor:
    """The images (n, S, S, 3) uint8 of a share, in order of their index."""
    reader = PieceReader(job.plan.order, job.config.data.path, job.manifest, job.config.data.decoding)
    blocks = reader.blocks(swept_pieces(own, image_bytes(job.config)))
    return torch.cat([torch.from_numpy(block["image"]) for block in blocks])


def _print_epoch(run: Run, echo: Echo) -> None:
    metrics, plan = complete_epoch(run), run.job.plan
    rate = metrics.get("images_per_second", 0.0)
    seconds = plan.images_per_epoch / rate if rate else 0.0
    echo(progress_line(metrics, run.job.config.optim.epochs, rate, seconds))
