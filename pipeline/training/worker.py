"""What each Ray Train worker runs: the EM loop."""

from __future__ import annotations

from typing import Any

import ray.train

from pipeline.collectives import world_size
from pipeline.errors import CheckpointError
from pipeline.plan import has_estep
from pipeline.training.checkpoint import RESTORE, load_weights, mean_over_workers, read_agreed, read_other_run, restore
from pipeline.training.estep import run_estep
from pipeline.training.halting import raise_alarms
from pipeline.training.job import Job
from pipeline.training.mstep import train_epoch
from pipeline.training.rollback import Halt
from pipeline.training.run import Run, build_run
from pipeline.training.saving import report, save_after_epoch


def train_worker(settings: dict[str, Job]) -> dict[str, Any]:
    """Run or resume one training run, `settings["job"]`; returns the last epoch's metrics, or what halted it."""
    run = build_run(settings["job"])
    try:
        with run.reporter:
            train(run)
    except Halt as halt:
        return halt.returned()
    if run.profiler:
        run.profiler.stop()
    return run.state.history[-1]


def train(run: Run) -> None:
    """Train all remaining epochs."""
    if not resume(run):
        run_estep(run)
        finish_epoch(run)
    while run.state.epochs_done < run.job.config.optim.epochs:
        train_epoch(run)
        if has_estep(run.job.config, run.state.epochs_done):
            run_estep(run)
        finish_epoch(run)


def resume(run: Run) -> bool:
    """Continue from the newest sound checkpoint of this run; False when there is none."""
    reported = ray.train.get_all_reported_checkpoints()
    values = read_agreed([report.checkpoint for report in reversed(reported)])
    if values is None and reported:
        raise CheckpointError(
            f"none of the {len(reported)} checkpoints in {run.job.folder.path} can be read; {RESTORE}"
        )
    if values is None:
        if run.job.weights_from is not None:
            load_weights(run.state.model, read_other_run(run.job.weights_from))
        return False
    restore(run.state, values, run.feed.inputs.own)
    workers = f"{world_size()} worker{'s' if world_size() > 1 else ''}"
    run.reporter.resumed(
        run.state.history, f"resumed after epoch {run.state.epochs_done}, step {run.state.step}, on {workers}"
    )
    run.timer.restart()
    return True


def finish_epoch(run: Run) -> None:
    """Complete the epoch's metrics, send them out, and save when it is time."""
    metrics = complete_epoch(run)
    run.reporter.epoch(metrics)
    raise_alarms(run)
    report(run, metrics, save=save_after_epoch(run))


def complete_epoch(run: Run) -> dict[str, float]:
    """The epoch's metrics, with losses, rates and times; the counters start again from zero."""
    state, config = run.state, run.job.config
    if state.history[-1]["epoch"] != state.epochs_done:  # an epoch without E-step
        state.history.append({"epoch": state.epochs_done})
    metrics = state.history[-1]
    if state.epochs_done:
        metrics |= mean_losses(run)
        metrics["steps_skipped"] = float(state.skipped)
        state.skipped.zero_()
        metrics["lr"] = float(run.schedules.lr[state.epochs_done * run.job.plan.steps_per_epoch - 1])
    metrics |= {f"seconds_{entry}": seconds for entry, seconds in run.timer.totals().items()}
    if state.epochs_done:  # of the images that this process saw: a resumed epoch has fewer
        metrics["images_per_second"] = run.timer.batches * config.optim.batch_size / metrics["seconds_epoch"]
    run.timer.restart()
    return metrics


def mean_losses(run: Run) -> dict[str, float]:
    """Means over the epoch's steps that were not skipped, and over the workers; the sums start again from zero."""
    steps = max(run.job.plan.steps_per_epoch - int(run.state.skipped), 1)
    sums = mean_over_workers(run.state.loss_sums)
    for total in run.state.loss_sums.values():
        total.zero_()
    return {name: value / steps for name, value in sums.items()}
