"""What a command finds in a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.models import RunConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.runs import inspection
from pipeline.runs.identity import SUMMARY, record_start, run_folder
from pipeline.runs.inspection import RunStatus, open_run_folder
from pipeline.storage.folder import UNFINISHED
from tests.helpers.manifests import manifest
from tests.runs.test_identity import config, images


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    images(tmp_path / "data")
    return config(tmp_path)


def status(run: RunConfig) -> RunStatus:
    with open_run_folder(run) as found:
        assert (found.summary is not None) == (found.status is RunStatus.FINISHED)
        return found.status


def test_how_far_a_run_has_come(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status(run) is RunStatus.NEW
    assert status(run) is RunStatus.NEW  # only claimed: it may have failed its checks
    record_start(run_folder(run), manifest())
    assert status(run) is RunStatus.STARTED
    monkeypatch.setattr(inspection, "check_resumable", lambda folder: True)
    assert status(run) is RunStatus.RESUMABLE
    run_folder(run).write(SUMMARY, {"scores": {}})
    assert status(run) is RunStatus.FINISHED


def test_damaged_checkpoints_are_refused(run: RunConfig) -> None:
    with open_run_folder(run) as found:
        record_start(found.folder, manifest())
        for day in (1, 2):
            Path(found.folder.root, f"checkpoint_2026-01-0{day}").mkdir()
    with pytest.raises(CheckpointError, match=r"snapshot\.json is missing"), open_run_folder(run):
        pytest.fail("it was opened")


def test_one_command_at_a_time(run: RunConfig) -> None:
    with open_run_folder(run), pytest.raises(ConfigError, match="another command is working in"), open_run_folder(run):
        pytest.fail("it was opened twice")


def test_files_that_killed_writers_left_are_deleted(run: RunConfig) -> None:
    left = Path(run_folder(run).make().root, f"{UNFINISHED}run.json")
    left.write_text("{")
    with open_run_folder(run):
        assert not left.exists()
