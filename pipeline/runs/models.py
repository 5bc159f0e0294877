"""Open trained models by reference: the folder of a run, an MLflow run, or a registered version."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.onnx_program import EXAMPLES, OnnxProgram, faster_program
from pipeline.backbones.weights import digest
from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError, first_line
from pipeline.inference.card import CARD, ModelCard
from pipeline.inference.consensus import ConsensusModel, trained_model
from pipeline.inference.model import ClusterModel
from pipeline.progress import Echo
from pipeline.runs.identity import IDENTITY, fault, read_clusters, read_started_run
from pipeline.runs.names import read_names
from pipeline.serving.bundle import PROGRAM, load_program, read_bundle
from pipeline.serving.export import ONNX, OUTPUTS, example_images
from pipeline.serving.mlflow_model import BUNDLE
from pipeline.storage import Folder, absolute
from pipeline.tracking import MODEL, database_path, redacted, tracking_uri
from pipeline.training.checkpoint import newest_in

PROGRAM_BATCH = 256  # images in a forward pass of a model that does not specify it
DEFAULT_STORAGE = "runs"
_RUN_ID, _VERSION = re.compile(r"[0-9a-f]{32}"), re.compile(r"[^/]+/\d+")

CPU = torch.device("cpu")

Load = Callable[[torch.device], Callable[[Tensor], tuple[Tensor, ...]]]
"""Loads a model on a device of any node: uint8 images (B, S, S, 3) to similarities (B, K) and features (B, D)."""


@dataclass(frozen=True)
class TrainedModel:
    """A model and what is needed to use it.

    Attributes
    ----------
    module : nn.Module
        On the CPU: uint8 images (B, S, S, 3) to similarities (B, K) and features (B, D).
    card : ModelCard
    weights : str
        Digest of the weights.
    batch_size : int
        Images in a forward pass.
    place : str or bytes
        Folder of the run; for a model from MLflow, the program itself.
    """

    module: nn.Module
    card: ModelCard
    weights: str
    batch_size: int
    place: str | bytes

    def loader(self, out: Folder) -> Load:
        """A function that loads the model on any node; a program is stored in `out` for that."""
        if isinstance(self.place, str):
            return partial(load_model, self.place)
        out.write_bytes(PROGRAM, self.place)
        return partial(_load_kept, out.path)

    def cpu_loader(self, out: Folder, echo: Echo) -> Load:
        """The same for nodes without GPUs: with onnxruntime if possible, from a program that is stored in `out`."""
        if not out.names(ONNX):
            program = faster_program(self.module, example_images(self.card, EXAMPLES), OUTPUTS, echo)
            if program is None:
                return self.loader(out)
            out.write_bytes(ONNX, program)
        return partial(_load_onnx, out.path)


def open_model(reference: str) -> TrainedModel:
    """Open a model by reference.

    Parameters
    ----------
    reference : str
        The folder of a finished run; or a model in MLflow: a run's id, ``runs:/ID/model``, a registered
        ``NAME/VERSION``, or any ``models:/...``. MLflow is the server that MLFLOW_TRACKING_URI names, or else the
        database in ``runs``.

    Raises
    ------
    ConfigError
        When there is no such model.
    """
    if (uri := model_uri(reference)) is not None:
        return _open_logged(uri)
    folder = Folder(absolute(reference))
    config, manifest = read_started_run(folder)
    model = load_model(folder.path)
    card = run_card(folder, config, manifest)
    return TrainedModel(model, card, digest(model.state_dict()), config.estep.batch_size, folder.path)


def model_uri(reference: str) -> str | None:
    """The MLflow URI of a reference; None if it is the folder of a run."""
    if reference.startswith(("models:/", "runs:/")):
        return reference
    if _RUN_ID.fullmatch(reference):
        return f"runs:/{reference}/{MODEL}"
    if _VERSION.fullmatch(reference) and not Folder(absolute(reference)).names(IDENTITY):
        return f"models:/{reference}"
    return None


def _open_logged(uri: str) -> TrainedModel:
    """The model that MLflow has under a URI; ConfigError when it has none, or not one of ours."""
    from mlflow.artifacts import download_artifacts

    store = tracking_uri(None, absolute(DEFAULT_STORAGE))
    database = database_path(store)
    if database is not None and not database.is_file():  # MLflow would create it
        raise ConfigError(f"{uri} is an MLflow model, but {database} does not exist; set MLFLOW_TRACKING_URI")
    with TemporaryDirectory() as local:
        try:
            folder = Path(download_artifacts(artifact_uri=uri, dst_path=local, tracking_uri=store))
        except Exception as error:
            raise ConfigError(
                f"MLflow at {redacted(store)} cannot provide {uri} ({first_line(error)}); set MLFLOW_TRACKING_URI to "
                "the server that has it, or give the folder of a run"
            ) from None
        bundle = folder / "artifacts" / BUNDLE
        if not (bundle / CARD).is_file():
            raise ConfigError(
                f"{uri} is not a model of DigPro, or is one of an earlier version; give the folder of its run"
            )
        try:
            module, card = read_bundle(bundle, CPU)
        except Exception as error:  # from torch or pydantic: the file is damaged or of another version
            raise ConfigError(
                f"{uri} has a {CARD} or {PROGRAM} that is damaged, or of another version ({fault(error)}); give the "
                "folder of its run"
            ) from None
        program = (bundle / PROGRAM).read_bytes()
    return TrainedModel(module, card, hashlib.sha256(program).hexdigest(), PROGRAM_BATCH, program)


def run_card(folder: Folder, config: RunConfig, manifest: Manifest) -> ModelCard:
    """The card of a run's model; ConfigError when the run is not finished."""
    clusters = read_clusters(folder)
    if clusters is None:
        raise ConfigError(f"{folder.path} is not finished; run its `digpro train` again to resume it")
    return ModelCard(
        run=folder.name,
        decoding=config.data.decoding,
        pixels=manifest.pixels,
        clusters=clusters,
        names=read_names(folder),
    )


def read_values(run: str) -> dict[str, Any]:
    """Values of the newest checkpoint of a run; ConfigError when none can be read."""
    values = newest_in(run)
    if values is None:
        raise ConfigError(f"{run} holds no readable checkpoint; run its `digpro train` again")
    return values


def load_model(run: str, device: torch.device = CPU) -> ClusterModel | ConsensusModel:
    """The model of a run's newest checkpoint; ConfigError when none can be read. Also called on the nodes."""
    config, manifest = read_started_run(Folder(run))
    return trained_model(config, manifest, read_values(run)).eval().to(device)


def _load_onnx(out: str, device: torch.device) -> OnnxProgram:
    return OnnxProgram(Folder(out).read_bytes(ONNX))


def _load_kept(out: str, device: torch.device) -> nn.Module:
    with TemporaryDirectory() as local:
        Path(local, PROGRAM).write_bytes(Folder(out).read_bytes(PROGRAM))
        return load_program(str(Path(local, PROGRAM)), device)
