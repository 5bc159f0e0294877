"""The layers of the packages: imports point down, with no exception; and what the mathematics does without."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parent

# From the bottom up: a package imports only packages listed before it. A module beside the folders counts as one.
LAYERS = [
    "errors",
    "memory",
    "interrupts",
    "storage",
    "lease",
    "progress",
    "provenance",
    "keyed_random",
    "collectives",
    "clustering",
    "method",
    "alarms",
    "backbones",
    "ray_private",
    "presets",
    "config",
    "data",
    "tracking",
    "plan",
    "build",
    "checks",
    "cluster",
    "backbone_features",
    "inference",
    "serving",
    "training",
    "report",
    "runs",
    "tuning",
    "submission",
    "estimator",
    "cli",
]
MATHEMATICS = {
    "collectives": {"errors"},
    "keyed_random": {"errors"},
    "clustering": {"errors", "collectives"},
    "method": {"errors", "collectives", "clustering"},
    "alarms": set(),
}


def package_of(path: Path) -> str:
    """The first part of a module's name below `pipeline`."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_packages(path: Path) -> set[str]:
    """Packages that a file imports anywhere, inside functions and for types too."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; the packages are read off full names"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("pipeline.")}


FILES = [path for path in sorted(ROOT.rglob("*.py")) if package_of(path) != "__init__"]


def test_every_package_has_its_layer() -> None:
    assert {package_of(path) for path in FILES} == set(LAYERS)
    assert len(set(LAYERS)) == len(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    layer = LAYERS.index(package_of(path))
    assert imported_packages(path) <= {package_of(path), *LAYERS[:layer]}


@pytest.mark.parametrize("name", MATHEMATICS)
def test_the_mathematics_imports_nothing_else_of_ours(name: str) -> None:
    for path in FILES:
        if package_of(path) == name:
            assert imported_packages(path) <= {name, *MATHEMATICS[name]}, path


@pytest.mark.parametrize("name", MATHEMATICS)
def test_the_mathematics_runs_without_the_frameworks_around_it(name: str) -> None:
    files = sorted((ROOT / name).glob("[a-z]*.py")) or [ROOT / f"{name}.py"]
    modules = [".".join(file.relative_to(ROOT.parent).with_suffix("").parts) for file in files]
    absent = dict.fromkeys(("ray", "mlflow", "pyarrow", "pydantic", "pipeline.config", "pipeline.data"))
    script = f"import sys; sys.modules.update({absent}); import {', '.join(modules)}"  # None there makes an import fail
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
