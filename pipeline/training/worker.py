"""What each Ray Train worker runs: the EM loop, from the newest checkpoint on."""

from __future__ import annotations

from typing import Any

import ray.train

from pipeline.collectives import world_size
from pipeline.errors import CheckpointError
from pipeline.training.checkpoint import RESTORE, load_weights, read_agreed, read_other_run, restore
from pipeline.training.halting import raise_alarms
from pipeline.training.job import Job
from pipeline.training.loop import complete_epoch, run_em_loop
from pipeline.training.rollback import Halt
from pipeline.training.run import Run, build_run
from pipeline.training.saving import report, save_after_epoch, save_inside_epoch


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
    """Train all remaining epochs, and save checkpoints on the way."""
    resume(run)
    run_em_loop(run, finish_epoch, between_steps=save_inside_epoch)


def resume(run: Run) -> None:
    """Continue from the newest sound checkpoint of this run, if there is one."""
    reported = ray.train.get_all_reported_checkpoints()
    values = read_agreed([report.checkpoint for report in reversed(reported)])
    if values is None and reported:
        raise CheckpointError(
            f"none of the {len(reported)} checkpoints in {run.job.folder.path} can be read; {RESTORE}"
        )
    if values is None:
        if run.job.weights_from is not None:
            load_weights(run.state.model, read_other_run(run.job.weights_from))
        return
    restore(run.state, values, run.feed.inputs.own)
    workers = f"{world_size()} worker{'s' if world_size() > 1 else ''}"
    run.reporter.resumed(
        run.state.history, f"resumed after epoch {run.state.epochs_done}, step {run.state.step}, on {workers}"
    )
    run.timer.restart()


def finish_epoch(run: Run) -> None:
    """Complete the epoch's metrics, send them out, and save when it is time."""
    metrics = complete_epoch(run)
    run.reporter.epoch(metrics)
    raise_alarms(run)
    report(run, metrics, save=save_after_epoch(run))
