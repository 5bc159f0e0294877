"""The trained model as an artifact of its run."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.tracking.writer import RunWriter

if TYPE_CHECKING:
    import numpy as np
    import torch


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
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("torch", "numpy")],
        )
        writer.artifact(Path(folder, "model"))
