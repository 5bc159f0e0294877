"""Small real runs of digits, and what two of them are compared by."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from pipeline.training.checkpoint import newest_in

EPOCHS = 3  # of 14 steps each
SETTINGS = [
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


def settings(folder: Path, *more: str) -> list[str]:
    """Overrides of a small digits run that keeps everything below a folder."""
    return [*SETTINGS, f"storage={folder}/runs", f"data.path={folder}/digits", *more]


def options(settings: Iterable[str]) -> list[str]:
    """Overrides as arguments of the command line."""
    return [argument for value in settings for argument in ("--set", value)]


def start(settings: Iterable[str], log: Path | None = None, **environment: str) -> subprocess.Popen[bytes]:
    """`digpro train` with these overrides, as a process of its own."""
    command = [sys.executable, "-m", "pipeline.cli", "train", *options(settings)]
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("ab") if log else open(os.devnull, "wb") as out:
        return subprocess.Popen(
            command, start_new_session=True, env=inherited | environment, stdout=out, stderr=subprocess.STDOUT
        )


def outcome(run_folder: str | Path) -> tuple[list[dict[str, float]], list[int]]:
    """History without times, and all pseudo-labels, of the newest checkpoint of a run."""
    values = newest_in(str(run_folder))
    assert values is not None, f"{run_folder} holds no checkpoint"
    timeless = [{key: value for key, value in page.items() if "second" not in key} for page in values["history"]]
    return timeless, values["labels"].tolist()


def family(pid: int) -> list[psutil.Process]:
    """The descendants of a process: for a driver, its Ray cluster and all in it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def train_workers(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The Ray Train workers among processes, the ones that are gone left out."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill what is left of processes."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
