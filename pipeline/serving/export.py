"""A trained model in forms that others read: ONNX, a `torch.export` program, or safetensors; each beside its card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from pipeline.errors import ConfigError, RunFailed, how_to_install
from pipeline.inference.card import CARD, ModelCard
from pipeline.serving.bundle import PROGRAM, example_images, export_program

Array = np.ndarray[Any, Any]
OUTPUTS = ("similarities", "features")
ONNX, WEIGHTS = "model.onnx", "model.safetensors"
ONNX_TOLERANCE = 1e-4  # between torch and onnxruntime, of similarities and of the unit features


def export_model(format_name: str, folder: Path, model: nn.Module, card: ModelCard) -> Path:
    """Write a model in a format into a folder, with its card; returns the file.

    Parameters
    ----------
    format_name : str
        ``onnx``, ``pt2`` or ``safetensors``.
    folder : Path
        It exists.
    model : nn.Module
        uint8 images (B, S, S, 3) to similarities (B, K) and features (B, D); on the CPU, in evaluation mode.
    card : ModelCard

    Raises
    ------
    ConfigError
        For an unknown format, or a package that is missing.
    RunFailed
        When onnxruntime does not compute what torch does.
    """
    if format_name not in FORMATS:
        raise ConfigError(f"--format {format_name!r} is not known; give one of {', '.join(FORMATS)}")
    (folder / CARD).write_text(card.model_dump_json(indent=1))
    return FORMATS[format_name](folder, model, card)


def _write_onnx(folder: Path, model: nn.Module, card: ModelCard) -> Path:
    """By torch's dynamo exporter, with a free batch; checked on the spot on another number of images."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it, and would say so less clearly
    except ImportError as error:
        raise ConfigError(f"ONNX needs the package {error.name}; {how_to_install('onnx')}") from None
    file = folder / ONNX
    torch.onnx.export(
        export_program(model, card),
        (),
        str(file),
        input_names=["images"],
        output_names=list(OUTPUTS),
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    images = example_images(card, 5)
    with torch.inference_mode():
        expected = model(images)
    found = session.run(list(OUTPUTS), {"images": images.numpy()})
    check_equal(str(file), [values.numpy() for values in expected], found)
    return file


def check_equal(file: str, expected: Sequence[Array], found: Sequence[Array]) -> None:
    """RunFailed when the outputs of a file differ from torch's by more than `ONNX_TOLERANCE`."""
    for name, ours, theirs in zip(OUTPUTS, expected, found, strict=True):
        difference = float(np.abs(ours - theirs).max())
        if not difference <= ONNX_TOLERANCE:  # nor when it is not a number
            raise RunFailed(
                f"{file}: {name} by onnxruntime differ from torch's by {difference:.2g}, more than {ONNX_TOLERANCE}; "
                "use --format pt2, and report this as a bug"
            )


def _write_program(folder: Path, model: nn.Module, card: ModelCard) -> Path:
    torch.export.save(export_program(model, card), folder / PROGRAM)
    return folder / PROGRAM


def _write_weights(folder: Path, model: nn.Module, card: ModelCard) -> Path:
    """All weights and the centres, by their names in `ClusterModel`."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / WEIGHTS)
    return folder / WEIGHTS


FORMATS: dict[str, Callable[[Path, nn.Module, ModelCard], Path]] = {
    "onnx": _write_onnx,
    "pt2": _write_program,
    "safetensors": _write_weights,
}
