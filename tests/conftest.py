"""Fixtures for all tests: the command line, and processes that live for the whole session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest

# Before PyTorch is imported: threads of two test processes on two cores wait for each other, six times as long in all.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.helpers.command_line import Result, command_line
from tests.helpers.fake_gpu import have_device
from tests.helpers.workers import Workers


@pytest.fixture
def without_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end with their last checkpoint: for tests that look at nothing else, since the files take ten seconds."""
    monkeypatch.setattr("pipeline.runs.artifacts.write_artifacts", lambda job: {"folder": job.folder.path})


@pytest.fixture
def digpro(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command line in this process, without Ray: (exit status, stdout, stderr)."""
    return command_line(monkeypatch, capsys)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    workers = Workers.gloo(2, tmp_path_factory.mktemp("pair"))
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    workers = Workers.gloo(3, tmp_path_factory.mktemp("trio"))
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def fake_gpu() -> Iterator[Workers]:
    """A process with a GPU that has no data (`tests.helpers.fake_gpu`)."""
    workers = Workers(1, have_device)
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def one_of_two_fake_gpus() -> Iterator[Workers]:
    """The same as one of two workers, whose exchanges send nothing."""
    workers = Workers(1, partial(have_device, workers=2))
    yield workers
    workers.close()
