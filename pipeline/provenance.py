"""What a result was made with: package versions, this machine's hardware, and the commit of the code.

One table for summaries, checkpoints, manifests and MLflow. Everything returned can be written as JSON.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "digpro-ray",
    "ray",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "pyarrow",
    "pillow",
    "mlflow",
    "optuna",
)


def versions() -> dict[str, str]:
    """Version of Python and of every package that can change a result; "not installed" where one is missing."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}}


def version_of(package: str) -> str:
    """Version of an installed package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # our own, where the code runs from a copied folder
        return "not installed"


def hardware() -> dict[str, Any]:
    """This machine: host name, system, processor, CPUs, memory in GiB, and the names of its GPUs.

    `cpus` counts those that this process may use, which a container or a batch system can limit.
    """
    import torch

    allowed = getattr(os, "sched_getaffinity", None)  # Linux only
    return {
        "hostname": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cpus": len(allowed(0)) if allowed else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def git_commit() -> str | None:
    """Commit of the checkout that this code runs from, with ``-dirty`` after local changes.

    None where the code is not in a checkout. A package installed inside somebody else's repository (a virtual
    environment in a project's folder) is not part of that repository, so git must know this very file.
    """
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _processor() -> str:
    info = Path("/proc/cpuinfo")  # Linux only, where `platform.processor` is empty
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command in `folder`; None when git is missing, slow or unwilling."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
