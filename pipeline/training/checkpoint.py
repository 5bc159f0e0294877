"""Everything the next step depends on, saved by rank 0 and loaded by all, on any number of workers and any device.

It holds no random state, because every random choice is keyed by (seed, epoch, image index). Files hold tensors and
plain values only and are read with `weights_only=True`, so loading one runs no code.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ray.train import Checkpoint, Result
from torch import Tensor

from pipeline.collectives import RowRange, all_sum, gather_to_rank_zero, object_from_rank_zero, rank, world_size
from pipeline.config.models import RunConfig
from pipeline.errors import CheckpointDamaged, CheckpointError, first_line
from pipeline.method.digpro import DigPro
from pipeline.provenance import version_of
from pipeline.ray_private import record_error
from pipeline.storage import Folder, filesystem
from pipeline.training.state import PseudoLabels, TrainState

STATE, ABOUT = "state.pt", "about.json"
CONSENSUS = "consensus"  # folder of the only checkpoint of a run that combines others, which Ray Train did not write
RAY_RECORD = "checkpoint_manager_snapshot.json"  # Ray Train's list of a run's checkpoints
RESTORE = "restore the deleted files, or start a new run under another name (--set name=...)"
FORMAT = 1
LOSSES_BEFORE_0_2 = ("loss_instance", "loss_prototype", "loss_group", "loss")
log = logging.getLogger(__name__)


def save_state(state: TrainState, config: RunConfig, folder: Path) -> None:
    """Write the state into an empty folder. All workers call it, rank 0 writes.

    State that is spread over the workers is combined first, so the file does not depend on their number: the bank is
    summed, the losses are averaged, and the pseudo-labels are gathered on rank 0.
    """
    assert state.pseudo is not None
    values = {
        "model": {k: v for k, v in state.model.state_dict().items() if not k.startswith("bank.")},
        "bank": state.model.bank.state(),
        "optimizer": state.optimizer.state_dict(),
        "mean_loss_sums": mean_over_workers(state.loss_sums),
        "labels": gather_to_rank_zero(state.pseudo.labels),
        "centers": state.pseudo.centers,
        "epoch": state.epochs_done,
        "step": state.step,
        "skipped": int(state.skipped),
        "history": state.history,
        "backbone": state.backbone,
    }
    if rank() == 0:
        write_checkpoint(folder, values, config)


def write_checkpoint(folder: Path, values: Mapping[str, Any], config: RunConfig) -> None:
    """Write the values, with their checksum, into an empty folder."""
    torch.save(dict(values), folder / STATE)
    about = {
        "format": FORMAT,
        "sha256": _digest(folder / STATE),
        "epoch": values["epoch"],
        "step": values["step"],
        "workers": world_size(),
        "versions": {name: version_of(name) for name in ("torch", "torchvision", "ray")},
        "config": config.model_dump(mode="json"),
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1))


def keep_consensus(run: Folder, values: Mapping[str, Any], config: RunConfig) -> None:
    """Write the checkpoint of a run that was not trained, but combines others."""
    folder = run.subfolder(CONSENSUS).make()
    with TemporaryDirectory() as local:
        write_checkpoint(Path(local), values, config)
        for name in (STATE, ABOUT):
            folder.put(Path(local, name))


def mean_over_workers(loss_sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Average of the workers' sums: the sums of the global batch, for any number of workers."""
    means = all_sum(torch.stack(list(loss_sums.values()))) / world_size()
    return dict(zip(loss_sums, means.tolist(), strict=True))


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Check a checkpoint's checksum and return its values on the CPU, with the checksum as "sha256".

    Raises
    ------
    CheckpointDamaged
        When a file is missing, damaged or of another format.
    OSError
        When the storage fails; the checkpoint itself may be sound.
    """
    try:
        about = json.loads((folder / ABOUT).read_text())
        digest = _digest(folder / STATE)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise CheckpointDamaged(f"checkpoint {folder} is incomplete: {error}") from None
    if about.get("format") != FORMAT:
        raise CheckpointDamaged(
            f"checkpoint {folder} has format {about.get('format')}, but this version reads {FORMAT}"
        )
    if about.get("sha256") != digest:
        raise CheckpointDamaged(f"checkpoint {folder} is damaged: {STATE} does not match its checksum")
    values: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    if "loss_sums" in values:  # written before digpro-ray 0.2, as a sum over the workers
        sums = values.pop("loss_sums") / about["workers"]
        values["mean_loss_sums"] = dict(zip(LOSSES_BEFORE_0_2, sums.tolist(), strict=True))
    return values | {"config": about["config"], "sha256": digest}


def restore(state: TrainState, values: dict[str, Any], own: RowRange) -> None:
    """Put a checkpoint's values into a freshly built state, on its device and for this worker, which owns rows `own`.

    The optimizer takes its momenta from the checkpoint and keeps the settings of the configuration it was built from.

    Raises
    ------
    CheckpointError
        When the checkpoint has pseudo-labels for a different number of images.
    """
    device = state.model.groups.features.device
    load_weights(state.model, values)
    settings = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": values["optimizer"]["state"], "param_groups": settings})
    for name, total in state.loss_sums.items():
        total.fill_(values["mean_loss_sums"].get(name, 0.0))
    state.pseudo = PseudoLabels(_own_labels(values["labels"], own).to(device), values["centers"].to(device), own)
    state.epochs_done, state.step = values["epoch"], values["step"]
    state.history = values["history"]
    state.skipped.fill_(values.get("skipped", 0))  # older checkpoints do not count them


def load_weights(model: DigPro, values: dict[str, Any]) -> None:
    """Put the networks, groups and bank of a checkpoint into a freshly built model of the same sizes."""
    mine = 1 if rank() == 0 else 0  # the bank was summed over the workers, so rank 0 takes all of it
    bank = {"bank.rows": values["bank"]["rows"] * mine, "bank.pushed": values["bank"]["pushed"]}
    model.load_state_dict(values["model"] | bank)


def _own_labels(labels: Tensor, own: RowRange) -> Tensor:
    """A copy of this worker's rows of all pseudo-labels (N,), which older checkpoints hold as int64."""
    if len(labels) != own.total:
        raise CheckpointError(
            f"the checkpoint has pseudo-labels of {len(labels):,} images, but the data set has {own.total:,}; restore "
            "the data set that the run began with, or start a new run under another name (--set name=...)"
        )
    return labels[own.start : own.stop].to(torch.int32, copy=True)


def read_newest(checkpoints: Iterable[Checkpoint]) -> dict[str, Any] | None:
    """Values of the first sound checkpoint, newest first; damaged ones are logged and skipped.

    Raises
    ------
    CheckpointError
        When the storage fails: the newest may be sound, and an older one would silently lose progress.
    """
    found = _newest(checkpoints)
    return found[1] if found else None


def read_agreed(checkpoints: Iterable[Checkpoint]) -> dict[str, Any] | None:
    """`read_newest` on several workers: rank 0 chooses the checkpoint, and each worker checks that it reads the same.

    Raises
    ------
    CheckpointError
        Also when a worker cannot read the checkpoint that rank 0 has chosen, or reads different contents.
    """
    found = _newest(checkpoints) if rank() == 0 else None
    chosen = object_from_rank_zero((found[0], found[1]["sha256"]) if found else None)
    if chosen is None:
        return None
    checkpoint, digest = chosen
    values = found[1] if found else _read(checkpoint)
    if values["sha256"] != digest:
        raise CheckpointError(
            f"worker {rank()} has read a different {STATE} in {checkpoint.path} (sha256 {values['sha256']}) than "
            f"worker 0 ({digest}); use storage that all nodes share"
        )
    return values


def _newest(checkpoints: Iterable[Checkpoint]) -> tuple[Checkpoint, dict[str, Any]] | None:
    for checkpoint in checkpoints:
        try:
            return checkpoint, _read(checkpoint)
        except CheckpointDamaged as error:
            log.warning("%s; trying the checkpoint before it", error)
    return None


def _read(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        with checkpoint.as_directory() as folder:
            return read_checkpoint(Path(folder))
    except FileNotFoundError as error:
        raise CheckpointDamaged(f"checkpoint {checkpoint.path} no longer exists: {first_line(error)}") from None
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} cannot be read now: {first_line(error)}; the same command tries again"
        ) from error


def read_other_run(path: str) -> dict[str, Any]:
    """Values of another run's checkpoint, on all workers; CheckpointError when it cannot be read or is gone."""
    files, root = filesystem(path)
    values = read_agreed([Checkpoint(root, files)])
    if values is None:
        raise CheckpointError(f"checkpoint {path} cannot be read; set model.start_from to another finished run")
    return values


def newest_in(run_folder: str) -> dict[str, Any] | None:
    """Values of the newest sound checkpoint that Ray Train registered in a run's folder, or of its consensus.

    None where there is neither.

    Raises
    ------
    CheckpointError
        When Ray Train's record of checkpoints is damaged, or names one that is gone.
    """
    folder = Folder(run_folder)
    if folder.names(CONSENSUS):
        return _read(Checkpoint(f"{folder.root}/{CONSENSUS}", folder.files))
    return read_newest(registered_checkpoints(folder))


def registered_checkpoints(folder: Folder) -> list[Checkpoint]:
    """The checkpoints that Ray Train registered in a run's folder and kept, the newest first.

    Raises
    ------
    CheckpointError
        When the record is damaged, is missing although there are checkpoints, or names a checkpoint that is gone.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it explains at length what a record is
    left = folder.names("checkpoint_")
    if RAY_RECORD not in left:
        if len(left) < 2:  # a kill can leave the first checkpoint before it is registered
            return []
        raise CheckpointError(f"{folder.file(RAY_RECORD)} is missing, and {left[-1]} cannot be used; {RESTORE}")
    try:
        result = Result.from_path(folder.root, storage_filesystem=folder.files)
    except (RuntimeError, record_error()) as error:
        gone = "" if len(left) > 1 else "; no checkpoint is left"
        reason = first_line(error).split("(")[0].strip()
        raise CheckpointError(f"{folder.file(RAY_RECORD)} cannot be used: {reason}{gone}; {RESTORE}") from None
    return [checkpoint for checkpoint, _ in reversed(result.best_checkpoints or [])]


def check_resumable(folder: Folder) -> bool:
    """Whether a run has a checkpoint to resume from; cheap, without reading one.

    Raises
    ------
    CheckpointError
        When it has checkpoints but none can be used: the run must not silently restart at epoch 0.
    """
    checkpoints = registered_checkpoints(folder)
    if checkpoints and not any(_is_complete(checkpoint) for checkpoint in checkpoints):
        raise CheckpointError(
            f"none of the {len(checkpoints)} checkpoints in {folder.path} can be read: {STATE} is empty or missing; "
            f"{RESTORE}"
        )
    return bool(checkpoints)


def _is_complete(checkpoint: Checkpoint) -> bool:
    files = checkpoint.filesystem.get_file_info([f"{checkpoint.path}/{name}" for name in (STATE, ABOUT)])
    return all(info.is_file and info.size for info in files)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
