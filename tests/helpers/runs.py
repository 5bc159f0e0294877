"""Small real runs of digits, and the values by which two of them are compared."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch

from pipeline.config.loading import load_config
from pipeline.data.shards import read_manifest
from pipeline.plan import make_plan
from pipeline.runs.identity import run_folder
from pipeline.runs.train import resolve
from pipeline.tracking import open_run
from pipeline.training.checkpoint import newest_in
from pipeline.training.in_process import train_in_process
from pipeline.training.job import Job

EPOCHS = 3  # of 14 steps each
SETTINGS = [
    "optim.precision=float32",  # the same on every processor
    f"optim.epochs={EPOCHS}",
    "optim.warmup_epochs=1",
    "model.projector_hidden=64",
    "model.predictor_hidden=64",
    "model.feature_size=32",
    "method.num_groups=null",
    "method.reset_every=10",
    "estep.restarts=3",
    "checkpoint.every_epochs=1",
    "checkpoint.every_steps=5",
]
TWO_WORKERS = "resources.workers=2"
ONE_THREAD = ("resources.workers=1", "resources.cpus_per_worker=1")  # other tests run at the same time

Outcome = tuple[list[dict[str, float]], list[int]]


def settings(folder: Path, *more: str) -> list[str]:
    """Overrides of a small digits run that keeps all its files in a folder."""
    return [*SETTINGS, f"storage={folder}/runs", f"data.path={folder}/digits", *more]


def options(settings: Iterable[str]) -> list[str]:
    """Overrides as arguments of the command line."""
    return [argument for value in settings for argument in ("--set", value)]


def start(settings: Iterable[str], log: Path | None = None, **environment: str) -> subprocess.Popen[bytes]:
    """Start `digpro train` with these overrides in a separate process."""
    return start_command(["train", *options(settings)], log, **environment)


def start_command(
    arguments: Iterable[str], log: Path | None = None, *, module: str = "pipeline.cli", **environment: str
) -> subprocess.Popen[bytes]:
    """Start `digpro` in a separate process, on no cluster unless the environment names one."""
    command = [sys.executable, "-m", module, *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("ab") if log else open(os.devnull, "wb") as out:
        return subprocess.Popen(
            command, start_new_session=True, env=inherited | environment, stdout=out, stderr=subprocess.STDOUT
        )


def outcome(run_folder: str | Path) -> Outcome:
    """The history without times, and all pseudo-labels, of the newest checkpoint of a run."""
    values = newest_in(str(run_folder))
    assert values is not None, f"there is no checkpoint in {run_folder}"
    return timeless(values["history"]), values["labels"].tolist()


def outcome_in_process(settings: Iterable[str]) -> Outcome:
    """The outcome of a run of digits in this process, on images in memory; its shards must be there."""
    alone = ("name=in-process", "data.mode=resident", "resources.workers=1", "tracking.enabled=false")
    config = resolve(load_config("digits", [*settings, *alone]), "run")
    manifest = read_manifest(config.data.path)
    job = Job(config, manifest, make_plan(config, manifest), open_run(config, run_folder(config).make()))
    state = train_in_process(job, torch.device("cpu"), print)
    assert state.pseudo is not None
    return timeless(state.history), state.pseudo.labels.tolist()


def timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """A history without its times and rates."""
    return [{key: value for key, value in epoch.items() if "second" not in key} for epoch in history]


def family(pid: int) -> list[psutil.Process]:
    """The descendants of a process; for a driver, all processes of its Ray cluster."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def train_workers(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The Ray Train workers among the processes that are still alive."""
    return with_title(processes, "RayTrainWorker")


def with_title(processes: Iterable[psutil.Process], part: str) -> list[psutil.Process]:
    """The processes that are still alive and have these words in their title, as Ray gives it."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, or is a zombie
            if part in " ".join(process.cmdline()):
                found.append(process)
    return found


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill the processes that are still alive."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
