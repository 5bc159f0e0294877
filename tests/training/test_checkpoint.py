"""Save, load, next step equal; on another number of workers; and damage."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import Checkpoint
from torch import Tensor

from pipeline.collectives import RowRange
from pipeline.data.shards import Manifest
from pipeline.errors import CheckpointDamaged, CheckpointError
from pipeline.storage import Folder
from pipeline.training import checkpoint
from pipeline.training.checkpoint import (
    ABOUT,
    RAY_RECORD,
    STATE,
    check_resumable,
    mean_over_workers,
    newest_in,
    read_agreed,
    read_checkpoint,
    read_newest,
    read_other_run,
    registered_checkpoints,
    restore,
    save_state,
)
from pipeline.training.estep import run_estep
from pipeline.training.loop import mean_losses
from pipeline.training.mstep import draw_weights, train_step
from pipeline.training.run import Run
from tests.helpers.checkpoints import write_record
from tests.helpers.golden import assert_close
from tests.helpers.small_run import IMAGES, digits, small_run, snapshot
from tests.helpers.workers import Workers


def _advance(run: Run, epochs: int, stop_at: tuple[int, int] | None = None) -> None:
    """Run whole epochs, or up to a step of one."""
    if run.state.pseudo is None:
        run_estep(run)
    while run.state.epochs_done < epochs:
        for batch in run.feed.inputs.epoch(run.state.epochs_done, run.state.step, draw_weights(run)):
            if (run.state.epochs_done, run.state.step) == stop_at:
                return
            train_step(run, batch)
        run.state.epochs_done, run.state.step = run.state.epochs_done + 1, 0
        run_estep(run)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Manifest]:
    return digits(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize("balance", [0.0, 0.8])
@pytest.mark.parametrize("stop_at", [(0, 3), (2, 0), (2, 1)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    data: tuple[Tensor, Manifest], tmp_path: Path, stop_at: tuple[int, int], balance: float
) -> None:
    whole, first, second = (small_run(*data, f"optim.balance={balance}") for _ in range(3))
    _advance(whole, 3)
    _advance(first, 3, stop_at)
    save_state(first.state, first.job.config, tmp_path)
    restore(second.state, read_checkpoint(tmp_path), second.feed.inputs.own)
    assert (second.state.epochs_done, second.state.step) == stop_at
    _advance(second, 3)
    expected = snapshot(whole)
    for name, value in snapshot(second).items():
        assert value.equal(expected[name]), name
    assert second.state.loss_sums == whole.state.loss_sums
    assert second.state.history == whole.state.history
    assert "label_free" in second.state.history[-1]


def _advance_within(run: Run, stop_at: tuple[int, int]) -> None:
    """Up to a step of an epoch, with the sums of losses of that epoch alone."""
    _advance(run, stop_at[0])
    mean_losses(run)
    _advance(run, stop_at[0] + 1, stop_at)


def _save_on_workers(rank: int, data: tuple[Tensor, Manifest], folder: Path, balance: float) -> dict[str, Any]:
    run = small_run(*data, f"optim.balance={balance}", double=True)
    _advance_within(run, (1, 2))
    save_state(run.state, run.job.config, folder)
    _advance(run, 2)
    return snapshot(run) | {"losses": mean_losses(run)}


@pytest.mark.parametrize("balance", [0.0, 0.8])
def test_two_workers_equal_one_also_across_a_resume(
    pair: Workers, data: tuple[Tensor, Manifest], tmp_path: Path, balance: float
) -> None:
    """The workers are saved in the second epoch, in which images are drawn by their pseudo-labels, or not."""
    expected, _ = pair.run(_save_on_workers, data, tmp_path, balance)
    alone, whole = (small_run(*data, f"optim.balance={balance}", double=True) for _ in range(2))
    restore(alone.state, read_checkpoint(tmp_path), alone.feed.inputs.own)
    _advance(alone, 2)
    _advance(whole, 1)
    mean_losses(whole)
    _advance(whole, 2)
    losses = expected.pop("losses")
    for run in (alone, whole):
        for name, value in snapshot(run).items():
            assert_close(value, expected[name], rtol=1e-7)
        assert mean_losses(run) == pytest.approx(losses, rel=1e-7)


def _load_on_workers(
    rank: int, data: tuple[Tensor, Manifest], folder: Path
) -> tuple[Tensor, dict[str, float], dict[str, float]]:
    """The bank, the losses so far as a checkpoint would keep them, and the mean losses of the finished epoch."""
    run = small_run(*data, double=True)
    restore(run.state, read_checkpoint(folder), run.feed.inputs.own)
    bank, sums = run.state.model.bank.gather(), mean_over_workers(run.state.loss_sums)
    _advance(run, 1)
    return bank, sums, mean_losses(run)


def test_a_checkpoint_of_one_worker_is_shared_out_over_two(
    pair: Workers, data: tuple[Tensor, Manifest], tmp_path: Path
) -> None:
    run = small_run(*data, double=True)
    _advance(run, 1, (0, 3))
    save_state(run.state, run.job.config, tmp_path)
    so_far, bank_so_far = mean_over_workers(run.state.loss_sums), run.state.model.bank.gather()
    _advance(run, 1)
    expected = mean_losses(run)
    for bank, sums, losses in pair.run(_load_on_workers, data, tmp_path):
        assert bank.equal(bank_so_far)
        assert sums == so_far
        assert losses == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("written", [torch.int32, torch.int64])  # now, and by earlier versions
def test_a_worker_keeps_the_labels_of_its_own_images_alone(
    data: tuple[Tensor, Manifest], tmp_path: Path, written: torch.dtype
) -> None:
    values = read_checkpoint(_saved(data, tmp_path / "c"))
    whole = values["labels"]
    assert whole.dtype == torch.int32
    assert len(whole.unique()) == 10
    run, own = small_run(*data), RowRange(7, 27, IMAGES)
    restore(run.state, values | {"labels": whole.to(written)}, own)
    kept = run.state.pseudo
    assert kept is not None
    assert (kept.labels.dtype, kept.own) == (torch.int32, own)
    assert kept.labels.equal(whole[7:27])
    assert kept.labels.untyped_storage().nbytes() == 4 * 20  # no view that keeps the others alive


def test_a_checkpoint_of_another_number_of_images_is_refused(data: tuple[Tensor, Manifest], tmp_path: Path) -> None:
    values = read_checkpoint(_saved(data, tmp_path / "c"))
    with pytest.raises(CheckpointError, match="pseudo-labels of 200 images, but the data set has 201; restore"):
        restore(small_run(*data).state, values, RowRange(0, 201, 201))


def test_a_checkpoint_of_an_earlier_version_keeps_its_losses(data: tuple[Tensor, Manifest], tmp_path: Path) -> None:
    """It has a sum over the workers, whose number is in about.json."""
    folder = _saved(data, tmp_path / "c")
    values = torch.load(folder / STATE, weights_only=True)
    del values["mean_loss_sums"]
    torch.save(values | {"loss_sums": torch.tensor([2.0, 4.0, 6.0, 8.0], dtype=torch.float64)}, folder / STATE)
    about = json.loads((folder / ABOUT).read_text())
    about |= {"workers": 2, "sha256": hashlib.sha256((folder / STATE).read_bytes()).hexdigest()}
    (folder / ABOUT).write_text(json.dumps(about))
    assert read_checkpoint(folder)["mean_loss_sums"] == {
        "loss_instance": 1.0, "loss_prototype": 2.0, "loss_group": 3.0, "loss": 4.0,
    }  # fmt: skip


def _saved(data: tuple[Tensor, Manifest], folder: Path) -> Path:
    folder.mkdir()
    run = small_run(*data)
    run_estep(run)
    save_state(run.state, run.job.config, folder)
    return folder


def test_damage_is_named_and_the_checkpoint_before_it_used(
    data: tuple[Tensor, Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = _saved(data, tmp_path / "old"), _saved(data, tmp_path / "new")
    content = bytearray((new / STATE).read_bytes())
    content[len(content) // 2] ^= 1
    (new / STATE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"new is damaged: state\.pt does not match its checksum"):
        read_checkpoint(new)
    values = read_newest([Checkpoint.from_directory(new), Checkpoint.from_directory(old)])
    assert values is not None
    assert "new is damaged" in caplog.text


def _read_with_a_fault(rank: int, checkpoints: list[str], faulty: int, fault: str) -> str:
    """The checkpoint that a worker has read, by its history, or its error; the worker `faulty` reads with a fault."""

    def failing(folder: Path) -> dict[str, Any]:
        if fault == "fails" and folder.name == "new":
            raise OSError("503 SlowDown")
        if fault == "damaged" and folder.name == "new":
            raise CheckpointDamaged("damaged")
        if fault == "other":
            return read_checkpoint(folder) | {"sha256": "other"}
        return read_checkpoint(folder)

    with pytest.MonkeyPatch.context() as patch:
        if rank == faulty:
            patch.setattr(checkpoint, "read_checkpoint", failing)
        try:
            values = read_agreed(Checkpoint.from_directory(path) for path in checkpoints)
        except CheckpointError as error:
            return str(error)
    return "" if values is None else str(values["step"])


def test_workers_never_go_on_from_two_checkpoints(pair: Workers, data: tuple[Tensor, Manifest], tmp_path: Path) -> None:
    """Rank 0 chooses, also an older one for all; what another worker cannot read ends it, instead of taking it back."""
    paths = []
    for step, name in ((2, "new"), (1, "old")):
        run = small_run(*data)
        run_estep(run)
        run.state.step = step
        (tmp_path / name).mkdir()
        save_state(run.state, run.job.config, tmp_path / name)
        paths.append(str(tmp_path / name))
    assert pair.run(_read_with_a_fault, paths, 0, "damaged") == ["1", "1"]
    assert pair.run(_read_with_a_fault, paths, 1, "") == ["2", "2"]
    for fault, said in (
        ("fails", "new cannot be read now: 503 SlowDown; the same command tries again"),
        ("damaged", "damaged"),
        ("other", "worker 1 has read a different state.pt in"),
    ):
        first, second = pair.run(_read_with_a_fault, paths, 1, fault)
        assert first == "2"
        assert said in second
    assert pair.run(_read_with_a_fault, [], 1, "") == ["", ""]


def test_a_storage_that_fails_does_not_take_a_run_back(
    data: tuple[Tensor, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(folder: Path) -> dict[str, Any]:
        raise OSError("connection reset")

    old, new = _saved(data, tmp_path / "old"), _saved(data, tmp_path / "new")
    monkeypatch.setattr(checkpoint, "read_checkpoint", failing)
    with pytest.raises(CheckpointError, match=r"new cannot be read now: connection reset; the same command tries"):
        read_newest([Checkpoint.from_directory(new), Checkpoint.from_directory(old)])


def test_another_runs_checkpoint_is_loaded_under_ones_own_settings(
    data: tuple[Tensor, Manifest], tmp_path: Path
) -> None:
    giver, taker = small_run(*data), small_run(*data, "optim.momentum=0.5", "optim.weight_decay=0")
    _advance(giver, 1)
    save_state(giver.state, giver.job.config, tmp_path)
    restore(taker.state, read_other_run(str(tmp_path)), taker.feed.inputs.own)
    assert {(group["momentum"], group["weight_decay"]) for group in taker.state.optimizer.param_groups} == {(0.5, 0.0)}
    momenta = [state["momentum_buffer"] for state in taker.state.optimizer.state.values()]
    expected = [state["momentum_buffer"] for state in giver.state.optimizer.state.values()]
    assert momenta
    assert all(mine.equal(theirs) for mine, theirs in zip(momenta, expected, strict=True))


def test_another_runs_checkpoint_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run/gone cannot be read; set model.start_from to another"):
        read_other_run(str(tmp_path / "run" / "gone"))


def test_missing_files_and_other_formats_are_errors(data: tuple[Tensor, Manifest], tmp_path: Path) -> None:
    folder = _saved(data, tmp_path / "c")
    about = (folder / ABOUT).read_text()
    (folder / ABOUT).write_text(about.replace('"format": 1', '"format": 99'))
    with pytest.raises(CheckpointError, match="has format 99, but this version reads 1"):
        read_checkpoint(folder)
    (folder / STATE).unlink()
    with pytest.raises(CheckpointError, match="is incomplete"):
        read_checkpoint(folder)
    assert read_newest([]) is None


def test_loading_runs_no_code(data: tuple[Tensor, Manifest], tmp_path: Path) -> None:
    folder = _saved(data, tmp_path / "c")
    values = torch.load(folder / STATE, weights_only=True)  # refuses anything but tensors and plain values
    assert set(values) >= {"model", "bank", "optimizer", "labels", "centers", "epoch", "step"}


def _registered(data: tuple[Tensor, Manifest], run: Path, count: int = 2) -> Path:
    """A run's folder with checkpoints, and Ray Train's record of them."""
    run.mkdir()
    names = [f"checkpoint_2026-01-0{i + 1}_00-00-00.000000" for i in range(count)]
    for name in names:
        _saved(data, run / name)
    write_record(run, names)
    return run


def test_the_newest_registered_checkpoint_is_read(data: tuple[Tensor, Manifest], tmp_path: Path) -> None:
    run = _registered(data, tmp_path / "run")
    assert [Path(found.path).name[:21] for found in registered_checkpoints(Folder(str(run)))] == [
        "checkpoint_2026-01-02",
        "checkpoint_2026-01-01",
    ]
    assert check_resumable(Folder(str(run)))
    assert newest_in(str(run)) is not None


def test_a_run_without_checkpoints_has_nothing_to_resume(tmp_path: Path) -> None:
    assert not check_resumable(Folder(str(tmp_path / "new")))
    assert newest_in(str(tmp_path)) is None


def _delete_all(run: Path) -> None:
    for folder in run.glob("checkpoint_2*"):
        shutil.rmtree(folder)


def _delete_one(run: Path) -> None:
    shutil.rmtree(next(run.glob("checkpoint_2*")))


def _empty_all(run: Path) -> None:
    for file in run.glob("checkpoint_2*/*"):
        file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_delete_all, r"checkpoint that does not exist anymore; no checkpoint is left; restore the deleted files"),
        (_delete_one, r"checkpoint that does not exist anymore; restore the deleted files"),
        (_empty_all, r"none of the 2 checkpoints in .*run can be read: state\.pt is empty or missing; restore"),
        (
            lambda run: (run / RAY_RECORD).write_bytes(b""),
            r"snapshot\.json cannot be used: Expecting value.* name=",
        ),
        (
            lambda run: (run / RAY_RECORD).unlink(),
            r"snapshot\.json is missing, and checkpoint_2026-01-02.* name=",
        ),
    ],
)
def test_checkpoints_that_somebody_damaged_are_one_line_and_never_a_start_at_epoch_0(
    data: tuple[Tensor, Manifest], tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    run = _registered(data, tmp_path / "run")
    damage(run)
    with pytest.raises(CheckpointError, match=said) as caught:
        check_resumable(Folder(str(run)))
    assert "\n" not in str(caught.value)


def test_a_first_checkpoint_that_a_kill_left_unregistered_is_no_damage(
    data: tuple[Tensor, Manifest], tmp_path: Path
) -> None:
    run = _registered(data, tmp_path / "run", count=1)
    (run / RAY_RECORD).unlink()
    assert not check_resumable(Folder(str(run)))
