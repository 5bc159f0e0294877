"""Save, load, next step equal; on another number of workers; and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import Checkpoint
from torch import Tensor

from pipeline.data.shards import Manifest
from pipeline.errors import CheckpointError
from pipeline.training.checkpoint import ABOUT, STATE, read, read_handed_on, read_newest, restore, save
from pipeline.training.worker import Run, run_estep, train_step
from tests.helpers.golden import assert_close
from tests.helpers.small_run import digits, small_run, snapshot
from tests.helpers.workers import Workers


def _advance(run: Run, epochs: int, stop_at: tuple[int, int] | None = None) -> None:
    """Run whole epochs, or up to a step of one."""
    if run.state.pseudo is None:
        run_estep(run)
    while run.state.epoch < epochs:
        for batch in run.images.epoch(run.state.epoch, run.state.step):
            if (run.state.epoch, run.state.step) == stop_at:
                return
            train_step(run, batch)
        run.state.epoch, run.state.step = run.state.epoch + 1, 0
        run_estep(run)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Manifest]:
    return digits(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize("stop_at", [(0, 3), (2, 0), (2, 1)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    data: tuple[Tensor, Manifest], tmp_path: Path, stop_at: tuple[int, int]
) -> None:
    whole, first, second = (small_run(*data) for _ in range(3))
    _advance(whole, 3)
    _advance(first, 3, stop_at)
    save(first.state, first.config, tmp_path)
    restore(second.state, read(tmp_path))
    assert (second.state.epoch, second.state.step) == stop_at
    _advance(second, 3)
    expected = snapshot(whole)
    for name, value in snapshot(second).items():
        assert value.equal(expected[name]), name
    assert second.state.loss_sums.equal(whole.state.loss_sums)
    assert second.state.history == whole.state.history
    assert "label_free" in second.state.history[-1]


def _save_on_workers(rank: int, data: tuple[Tensor, Manifest], folder: Path) -> dict[str, Any]:
    run = small_run(*data, double=True)
    _advance(run, 2, (1, 2))
    save(run.state, run.config, folder)
    _advance(run, 2)
    return snapshot(run)


def test_two_workers_equal_one_also_across_a_resume(
    pair: Workers, data: tuple[Tensor, Manifest], tmp_path: Path
) -> None:
    expected, _ = pair.run(_save_on_workers, data, tmp_path)
    alone, whole = (small_run(*data, double=True) for _ in range(2))
    restore(alone.state, read(tmp_path))
    _advance(alone, 2)
    _advance(whole, 2)
    for run in (alone, whole):
        for name, value in snapshot(run).items():
            assert_close(value, expected[name], rtol=1e-7)


def _load_on_workers(rank: int, data: tuple[Tensor, Manifest], folder: Path) -> tuple[Tensor, Tensor]:
    run = small_run(*data)
    restore(run.state, read(folder))
    return run.state.model.bank.gather(), run.state.loss_sums


def test_a_checkpoint_of_one_worker_is_shared_out_over_two(
    pair: Workers, data: tuple[Tensor, Manifest], tmp_path: Path
) -> None:
    run = small_run(*data)
    _advance(run, 1, (0, 3))
    save(run.state, run.config, tmp_path)
    answers = pair.run(_load_on_workers, data, tmp_path)
    for bank, _ in answers:
        assert bank.equal(run.state.model.bank.gather())
    assert sum(losses for _, losses in answers).equal(run.state.loss_sums)


def _saved(data: tuple[Tensor, Manifest], folder: Path) -> Path:
    folder.mkdir()
    run = small_run(*data)
    run_estep(run)
    save(run.state, run.config, folder)
    return folder


def test_damage_is_named_and_the_checkpoint_before_it_used(
    data: tuple[Tensor, Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = _saved(data, tmp_path / "old"), _saved(data, tmp_path / "new")
    content = bytearray((new / STATE).read_bytes())
    content[len(content) // 2] ^= 1
    (new / STATE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"new is damaged: state\.pt does not match its checksum"):
        read(new)
    values = read_newest([Checkpoint.from_directory(new), Checkpoint.from_directory(old)])
    assert values is not None
    assert "new is damaged" in caplog.text


def test_another_runs_checkpoint_is_loaded_under_ones_own_settings(
    data: tuple[Tensor, Manifest], tmp_path: Path
) -> None:
    giver, taker = small_run(*data), small_run(*data, "optim.momentum=0.5", "optim.weight_decay=0")
    _advance(giver, 1)
    save(giver.state, giver.config, tmp_path)
    restore(taker.state, read_handed_on(str(tmp_path)))
    assert {(group["momentum"], group["weight_decay"]) for group in taker.state.optimizer.param_groups} == {(0.5, 0.0)}
    momenta = [state["momentum_buffer"] for state in taker.state.optimizer.state.values()]
    expected = [state["momentum_buffer"] for state in giver.state.optimizer.state.values()]
    assert momenta
    assert all(mine.equal(theirs) for mine, theirs in zip(momenta, expected, strict=True))


def test_another_runs_checkpoint_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run/gone, from which this run was to start, cannot be read"):
        read_handed_on(str(tmp_path / "run" / "gone"))


def test_missing_files_and_other_formats_are_errors(data: tuple[Tensor, Manifest], tmp_path: Path) -> None:
    folder = _saved(data, tmp_path / "c")
    about = (folder / ABOUT).read_text()
    (folder / ABOUT).write_text(about.replace('"format": 1', '"format": 99'))
    with pytest.raises(CheckpointError, match="has format 99, this version reads 1"):
        read(folder)
    (folder / STATE).unlink()
    with pytest.raises(CheckpointError, match="is incomplete"):
        read(folder)
    assert read_newest([]) is None


def test_loading_runs_no_code(data: tuple[Tensor, Manifest], tmp_path: Path) -> None:
    folder = _saved(data, tmp_path / "c")
    values = torch.load(folder / STATE, weights_only=True)  # refuses anything but tensors and plain values
    assert set(values) >= {"model", "bank", "optimizer", "labels", "centers", "epoch", "step"}
