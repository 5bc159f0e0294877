"""The trained model: an artifact of its run, and a version in MLflow's registry."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.provenance import versions
from pipeline.tracking.diagnosis import summary_of
from pipeline.tracking.run import RunRef
from pipeline.tracking.store import client_for
from pipeline.tracking.writer import RunWriter

if TYPE_CHECKING:
    import numpy as np
    import torch

_logger = logging.getLogger(__name__)


def log_final_model(writer: RunWriter, model: torch.nn.Module, example: np.ndarray) -> None:
    """Log `model` as the run's artifact ``model``; load it with ``mlflow.pytorch.load_model("runs:/<id>/model")``.

    It is stored as a `torch.export` program (pt2), which needs neither pickle nor our code to load, on the CPU and
    in evaluation mode. `model` itself is left as it is.

    Parameters
    ----------
    writer : RunWriter
    model : torch.nn.Module
        One tensor in, one tensor out.
    example : ndarray of shape (N, ...)
        N >= 2, since the export would turn a batch of one into a constant. Two rows are kept with the model.

    Raises
    ------
    ValueError
        `example` has fewer than two rows.
    """
    import copy

    import mlflow.pytorch
    import torch
    from mlflow.models import infer_signature

    if len(example) < 2:
        raise ValueError(f"example has shape {example.shape}; give at least 2 rows, so that the batch stays free")
    if not writer.ref.enabled:
        return
    example = example[:2].copy()
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    output = model(torch.from_numpy(example)).numpy()
    with TemporaryDirectory() as folder:
        mlflow.pytorch.save_model(
            model,
            Path(folder, "model"),
            signature=infer_signature(example, output),
            input_example=example,
            serialization_format="pt2",
            pip_requirements=[f"{name}=={versions()[name]}" for name in ("torch", "numpy")],
        )
        writer.artifact(Path(folder, "model"))


def register_model(ref: RunRef, name: str, tags: Mapping[str, str]) -> str | None:
    """Make the run's logged ``model`` the newest version of a registered model; a run's model is registered once.

    Returns
    -------
    str or None
        The version. None where records are off, or after a failure, which is logged.
    """
    from mlflow.exceptions import MlflowException

    if not ref.enabled:
        return None
    try:
        client = client_for(ref.uri)
        if known := client.search_model_versions(f"name = '{name}' and run_id = '{ref.run_id}'"):
            return str(known[0].version)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{client.get_run(ref.run_id).info.artifact_uri}/model"
        return str(client.create_model_version(name, source, ref.run_id, tags=dict(tags)).version)
    except Exception as error:
        _logger.warning("the model of MLflow run %s could not be registered: %s", ref.name, summary_of(error))
        return None
