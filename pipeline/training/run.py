"""All that one worker holds of a training run, and how it is put together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.train.torch import get_device
from torch import nn

from pipeline.build import build_run_optimizer, build_run_schedules, data_parallel
from pipeline.collectives import rank
from pipeline.data.read import read_labels
from pipeline.method.schedules import Schedules
from pipeline.tracking import RunWriter, spool_path
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.feed import Feed, open_feed
from pipeline.training.job import Job
from pipeline.training.monitors import Monitors, make_monitors
from pipeline.training.precision import settle_job
from pipeline.training.profile import StepProfiler
from pipeline.training.progress import Reporter
from pipeline.training.state import TrainState
from pipeline.training.threads import use_given_cpus
from pipeline.training.timing import EpochTimer


@dataclass
class Run:
    """All that one worker holds."""

    job: Job
    feed: Feed
    state: TrainState
    step_model: nn.Module
    """The model, with gradients that are averaged over the workers."""
    schedules: Schedules
    timer: EpochTimer
    reporter: Reporter
    classes: np.ndarray[Any, Any] | None = None
    """True classes (own rows,), -1 where unknown; None on all workers when no image has one."""
    profiler: StepProfiler | None = None
    """None when no steps are recorded."""
    monitors: Monitors | None = None
    """None when monitors are switched off, or no image has a class."""
    preempted_nodes: list[str] = field(default_factory=list)
    """Nodes whose preemption has been answered by a checkpoint."""


def build_run(job: Job) -> Run:
    """The run of this Ray Train worker."""
    keep_freed_memory()
    use_given_cpus()
    device = get_device()
    job = settle_job(job, device)
    config, feed = job.config, open_feed(job, device)
    run = new_run(job, feed, Reporter(open_writer(job), job.board) if rank() == 0 else Reporter())
    own = feed.inputs.own
    run.classes = read_labels(config.data.path, own.start, own.stop)
    run.monitors = make_monitors(run.classes, own, config, device)
    run.profiler = StepProfiler(job.folder, config.profile.steps) if config.profile.steps else None
    return run


def new_run(job: Job, feed: Feed, reporter: Reporter) -> Run:
    """A run before its first E-step, without the parts that need classes or Ray."""
    config, model = job.config, feed.model
    return Run(
        job=job,
        feed=feed,
        state=TrainState(model, build_run_optimizer(config, model), backbone=feed.backbone),
        step_model=data_parallel(model),
        schedules=build_run_schedules(config, job.plan.steps_per_epoch),
        timer=EpochTimer(model.groups.features.device),
        reporter=reporter,
    )


def open_writer(job: Job) -> RunWriter:
    """MLflow's writer of this run."""
    return RunWriter(job.tracking, spool_path(job.folder), system_metrics=job.config.tracking.system_metrics)
