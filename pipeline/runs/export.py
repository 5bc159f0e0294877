"""Export a trained model as ONNX, a `torch.export` program, or safetensors."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.inference.card import CARD
from pipeline.runs.models import open_model
from pipeline.serving.export import export_model
from pipeline.storage import Folder, absolute, check_writable, join


def export(run: str, format_name: str, out: str | None = None) -> dict[str, str]:
    """Write the model and its card; returns the paths of both.

    Parameters
    ----------
    run : str
        The model: see `open_model`.
    format_name : str
        ``onnx``, ``pt2`` or ``safetensors``.
    out : str, optional
        Folder to write to. When absent: ``export`` in the run's folder, or in the current one for a model from MLflow.

    Raises
    ------
    ConfigError
        When there is no such model or format.
    RunFailed
        When onnxruntime and torch give different results.
    """
    model = open_model(run)
    place = join(model.place, "export") if isinstance(model.place, str) else "export"
    target = Folder(absolute(out or place))
    check_writable(target.path, "--out")
    target.make()
    with TemporaryDirectory() as local:
        file = export_model(format_name, Path(local), model.module, model.card)
        for name in (file.name, CARD):
            target.write_bytes(name, Path(local, name).read_bytes())
    return {"model": target.file(file.name), "card": target.file(CARD)}
