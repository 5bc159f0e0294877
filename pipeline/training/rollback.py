"""An alarm ends a run or rolls it back to its last checkpoint: what the workers report, and what the driver does.

A run that is rolled back stays the same run in the same folder, with another seed or learning rate from its last
checkpoint on. The change is recorded in the folder, so it survives a kill. The seed changes views, noise and k-means,
but not the order of the images: the checkpoint may lie within an epoch, which has each image once.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from pipeline.alarms import Alarm
from pipeline.config.models import LARGEST_SEED, AlarmLevel, RunConfig
from pipeline.errors import Alarmed
from pipeline.storage import Folder
from pipeline.training.job import Job

ROLLBACKS = "rollbacks.json"  # in a run's folder: each alarm that rolled it back, with the seed and rate from then on
HALT = "halt"  # key in the result of `train_worker` for a run that an alarm has halted
HALTING: tuple[AlarmLevel, ...] = ("stop", "roll_back")  # levels, the stronger first
SEED_STEP = 1_000_003  # far from the seeds that a person compares


class Halt(Exception):
    """Ends the loop of all workers at once, before anything of the epoch is saved."""

    def __init__(self, level: AlarmLevel, alarm: Alarm) -> None:
        super().__init__(alarm.text)
        self.level, self.alarm = level, alarm

    def returned(self) -> dict[str, Any]:
        """What a worker returns for it; an error would make Ray Train start workers that end the same way."""
        return {HALT: {"level": self.level, **asdict(self.alarm)}}


def read_rollbacks(folder: Folder) -> list[dict[str, Any]]:
    """The rollbacks of a run: epoch, kind and text of the alarm, new seed and learning rate."""
    return list((folder.read(ROLLBACKS) or {}).get("rollbacks", []))


def as_rolled_back(job: Job) -> Job:
    """The job with the seed and the learning rate of the last rollback."""
    done = read_rollbacks(job.folder)
    if not done:
        return job
    config = job.config
    optim = config.optim.model_copy(update={"lr": done[-1]["lr"]})
    return replace(job, config=config.model_copy(update={"seed": done[-1]["seed"], "optim": optim}))


def roll_back(job: Job, halt: dict[str, Any]) -> str:
    """Record how a halted run continues, and return a line that says so.

    Raises
    ------
    Alarmed
        When the alarm's level is stop, or the run has been rolled back `alarms.max_rollbacks` times.
    """
    folder, limit = job.folder, job.config.alarms.max_rollbacks
    done, kind = read_rollbacks(folder), halt["kind"]
    reason = f"run {folder.name} was halted at epoch {halt['epoch']}: {halt['text']}"
    if halt["level"] == "stop":
        raise Alarmed(f"{reason}. The same command with alarms.{kind}=warn resumes from the last checkpoint")
    if len(done) >= limit:
        raise Alarmed(
            f"{reason}. It was rolled back {len(done)} times before (alarms.max_rollbacks={limit}); the same command "
            f"with alarms.{kind}=warn resumes from the last checkpoint"
        )
    now = as_rolled_back(job).config
    seed, lr = changed(now)
    alarm = {name: halt[name] for name in ("epoch", "kind", "text")}
    folder.write(ROLLBACKS, {"rollbacks": [*done, alarm | {"seed": seed, "lr": lr}]})
    return (
        f"rolled back to the last checkpoint, with seed {seed} (before: {now.seed}) and optim.lr {lr:g} (before: "
        f"{now.optim.lr:g})"
    )


def changed(config: RunConfig) -> tuple[int, float]:
    """Seed and learning rate after one more rollback."""
    seed = (config.seed + SEED_STEP) % (LARGEST_SEED + 1)
    return seed, config.optim.lr * config.alarms.rollback_lr_factor
