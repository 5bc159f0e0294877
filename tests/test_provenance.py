"""Versions, hardware and commit: complete, writable as JSON, and never somebody else's commit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import provenance

FILE = Path(provenance.__file__)


def test_versions_name_python_our_package_and_what_computes() -> None:
    found = provenance.versions()
    assert {"python", "digpro-ray", "ray", "torch", "torchvision", "numpy", "pyarrow", "mlflow"} <= set(found)
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["python"] == ".".join(str(part) for part in sys.version_info[:3])


def test_a_missing_package_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package-here",))
    assert provenance.versions()["no-such-package-here"] == "not installed"


def test_hardware_can_be_written_as_json() -> None:
    found = provenance.hardware()
    assert json.loads(json.dumps(found)) == found
    assert found["cpus"] >= 1
    assert found["memory_gib"] > 0
    assert found["processor"]
    assert len(found["gpus"]) == torch.cuda.device_count()


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *author, "-C", folder, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the module in it, which believes that it runs from there."""
    shutil.copy(FILE, tmp_path / FILE.name)
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "empty")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / FILE.name))
    return tmp_path


def test_commit_of_a_clean_and_of_a_changed_checkout(checkout: Path) -> None:
    git(checkout, "add", FILE.name)
    git(checkout, "commit", "-q", "-m", "code")
    git(checkout, "tag", "-a", "v1", "-m", "a tag does not replace the commit")
    head = git(checkout, "rev-parse", "HEAD")
    assert provenance.git_commit() == head
    (checkout / FILE.name).write_text("changed")
    assert provenance.git_commit() == f"{head}-dirty"


def test_code_installed_inside_another_repository_has_no_commit(checkout: Path) -> None:
    assert provenance.git_commit() is None


def test_no_git_is_no_error(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.git_commit() is None


def test_the_module_needs_neither_ray_nor_torch_to_be_imported() -> None:
    code = "import sys, pipeline.provenance; sys.exit(bool({'ray', 'torch', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=FILE.parents[1], check=False).returncode == 0
