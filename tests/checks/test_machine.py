"""What would hang Ray on this machine, or keep it from starting, is named first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pipeline.checks import machine
from pipeline.checks.machine import machine_findings, ray_temporary_folder, shadowing_modules


def wrong(findings: list[machine.Finding]) -> dict[str, str]:
    """What is to fix, by what it is about."""
    return {finding.what: finding.found for finding in findings if finding.remedy}


@pytest.mark.parametrize(
    "file", ["numpy.py", "queue.py", "random.py", "yaml.py", "ray/__init__.py", "torch/__init__.py"]
)
def test_modules_in_place_of_a_librarys_are_named(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    [finding] = shadowing_modules([str(tmp_path)])
    name = file.partition("/")[0]
    assert str(tmp_path / name) in finding.found
    assert f"library {name.removesuffix('.py')!r}" in finding.found
    assert "rename it" in finding.remedy


@pytest.mark.parametrize(
    "file",
    [
        "train.py",
        "test.py",
        "tests/__init__.py",
        "pipeline/__init__.py",
        "sys.py",
        "ray/notes.txt",
        "numpy.txt",
        "torch-2.py",
    ],
)
def test_other_files_are_harmless(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert list(shadowing_modules([str(tmp_path)])) == []


def test_this_project_shadows_nothing() -> None:
    root = Path(__file__).parents[2]
    assert list(shadowing_modules([str(root), str(root / "jobs")])) == []


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with nothing of Ray's in the environment."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "digpro")])
    return tmp_path


def test_a_machine_that_is_well_has_nothing_to_fix(plain: Path) -> None:
    assert wrong(machine_findings(starts_cluster=True)) == {}


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_that_cannot_be_written_is_named(
    plain: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "/dev/null")
    assert "/dev/null/ray cannot be written" in wrong(machine_findings(starts_cluster=True))["temporary folder"]


def test_a_temporary_folder_that_is_too_long_for_sockets_is_named(plain: Path) -> None:
    fits = "/tmp/" + "x" * (machine.SOCKET_BYTES - len(machine.session_socket("/tmp/", os.getpid())))
    assert len(machine.session_socket(fits, os.getpid())) == machine.SOCKET_BYTES
    assert "is 1 bytes too long" in machine._temporary_folder(f"{fits}x").found
    assert "too long" not in machine._temporary_folder(fits).found
    Path(fits, "ray").rmdir()
    Path(fits).rmdir()


def test_shared_memory_that_is_missing_is_named(plain: Path) -> None:
    [finding] = machine._shared_memory(str(plain / "none"))
    assert "does not exist" in finding.found
    assert "--shm-size" in finding.remedy


def test_empty_variables_name_no_folder(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "")
    monkeypatch.setenv("TMPDIR", "")
    assert ray_temporary_folder() == "/tmp"
