"""When a run saves its state, and what it hands to Ray Train."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode

from pipeline.collectives import all_sum, rank
from pipeline.training.checkpoint import save_state
from pipeline.training.halting import check_run_finite
from pipeline.training.run import Run

SYNC, ASYNC = CheckpointUploadMode.SYNC, CheckpointUploadMode.ASYNC
URGENT_STEPS = 10  # between two checks for preemptions and requests: each is a barrier, and the notice is 30 s


def save_inside_epoch(run: Run) -> None:
    """Save a checkpoint when the configuration asks for one here, or a node or the driver is about to shut down."""
    every = run.job.config.checkpoint.every_steps
    urgent = run.state.step % URGENT_STEPS == 0 and agree_on_urgent_save(run)
    if urgent or (every and run.state.step % every == 0):
        check_run_finite(run)
        report(run, {"epoch": run.state.epochs_done, "step": run.state.step}, save=SYNC if urgent else ASYNC)


def save_after_epoch(run: Run) -> CheckpointUploadMode | None:
    """How to save the state at the end of an epoch; None if no save is due."""
    config, epoch = run.job.config, run.state.epochs_done
    if epoch == config.optim.epochs or agree_on_urgent_save(run):
        return SYNC
    return ASYNC if epoch % config.checkpoint.every_epochs == 0 else None


def agree_on_urgent_save(run: Run) -> bool:
    """Whether a node or the driver is about to shut down; a barrier, with the same answer on all workers."""
    return take_new_preemptions(run) or take_request(run)


def take_new_preemptions(run: Run) -> bool:
    """Whether the preemption of another worker node was announced since the last call; the same on all workers."""
    info = ray.train.get_preemption_info()
    before, run.preempted_nodes = run.preempted_nodes, info.preempted_node_ids if info else []
    return not set(run.preempted_nodes) <= set(before)


def take_request(run: Run) -> bool:
    """Whether the driver, about to shut down, has asked rank 0 for a checkpoint since the last call; a barrier."""
    wanted = torch.tensor(float(run.reporter.take_request()), device=run.state.model.groups.features.device)
    return bool(all_sum(wanted))


def report(run: Run, metrics: dict[str, Any], *, save: CheckpointUploadMode | None) -> None:
    """Hand the metrics, and a checkpoint if one is to be saved, to Ray Train; a barrier over the workers.

    ASYNC uploads while training continues, in the order of the reports. The last checkpoint of a run, and one that
    must be there before a node shuts down, are SYNC. Metrics alone are ASYNC too, so that they arrive after the uploads
    before them.
    """
    with run.timer.time("checkpoint"):
        ray.train.report(
            metrics,
            checkpoint=write_checkpoint(run) if save else None,
            checkpoint_upload_mode=save or ASYNC,
            delete_local_checkpoint_after_upload=True,
        )


def write_checkpoint(run: Run) -> Checkpoint | None:
    """The state in a temporary folder, on rank 0; all workers call it, because the state is spread over them."""
    folder = tempfile.mkdtemp(dir=Path.cwd())  # Ray's session folder, which goes when the cluster goes
    save_state(run.state, run.job.config, Path(folder))
    if rank() == 0:
        return Checkpoint.from_directory(folder)
    Path(folder).rmdir()
    return None
