"""The arrows between the rooms: what may import what, and what the mathematics does without."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parent

# A room may import itself and what stands to its right. Files beside the folders are rooms of their own.
MATHEMATICS = {"collectives", "keyed_random"}
METHOD = {"method", "clustering", *MATHEMATICS}
DATA = {"data", "tracking", "config", "presets"}
MAY_IMPORT: dict[str, set[str]] = {
    "collectives": set(),
    "keyed_random": set(),
    "clustering": {"collectives"},
    "method": {"clustering", "collectives"},
    "config": {"presets"},
    "presets": set(),
    "cluster": {"config"},
    "errors": set(),
    "tracking": {"config"},
    "data": {"config", *MATHEMATICS},
    "build": METHOD | DATA,
    "inference": {"training", "errors", "build", "cluster", *METHOD, *DATA},
    "training": {"inference", "errors", "build", "cluster", *METHOD, *DATA},
    "tuning": {"training", "errors", "cluster", *DATA},
    "submission": {"config", "errors"},
    "doctor": {"submission", "training", *DATA},
    "cli": {"doctor", "submission", "errors", "tuning", "training", "inference", "build", "cluster", *METHOD, *DATA},
}


def room(path: Path) -> str:
    """The first part of a module's name below `pipeline`."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports anywhere, inside functions too."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; the rooms are read off full names"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("pipeline.")}


@pytest.mark.parametrize("path", [p for p in sorted(ROOT.rglob("*.py")) if room(p) != "__init__"], ids=str)
def test_arrows_never_point_back(path: Path) -> None:
    assert imported_rooms(path) <= MAY_IMPORT[room(path)] | {room(path)}


@pytest.mark.parametrize("name", ["method", "clustering", "collectives", "keyed_random"])
def test_the_mathematics_runs_without_the_frameworks_around_it(name: str) -> None:
    files = sorted((ROOT / name).glob("[a-z]*.py")) or [ROOT / f"{name}.py"]
    modules = [".".join(file.relative_to(ROOT.parent).with_suffix("").parts) for file in files]
    absent = dict.fromkeys(("ray", "mlflow", "pyarrow", "pydantic", "pipeline.config", "pipeline.data"))
    script = f"import sys; sys.modules.update({absent}); import {', '.join(modules)}"  # None there makes an import fail
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
