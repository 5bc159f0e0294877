"""The EM loop: training epochs and E-steps in turn, and the metrics of an epoch."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.plan import has_estep
from pipeline.training.checkpoint import mean_over_workers
from pipeline.training.estep import run_estep
from pipeline.training.mstep import train_epoch
from pipeline.training.run import Run

Action = Callable[[Run], object]


def run_em_loop(run: Run, finish_epoch: Action, between_steps: Action = lambda run: None) -> None:
    """Train all remaining epochs; a new run begins with an E-step.

    `finish_epoch` is called after that E-step and after every epoch, `between_steps` after every other step.
    """
    if run.state.pseudo is None:
        run_estep(run)
        finish_epoch(run)
    while run.state.epochs_done < run.job.config.optim.epochs:
        train_epoch(run, between_steps)
        if has_estep(run.job.config, run.state.epochs_done):
            run_estep(run)
        finish_epoch(run)


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
