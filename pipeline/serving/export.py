"""Write a trained model as ONNX, a `torch.export` program, or safetensors, each with its card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.backbones.onnx_program import EXAMPLES, export_module, to_onnx
from pipeline.errors import ConfigError, RunFailed
from pipeline.inference.card import CARD, ModelCard
from pipeline.serving.bundle import PROGRAM

OUTPUTS = ("similarities", "features")
ONNX, WEIGHTS = "model.onnx", "model.safetensors"


def export_model(format_name: str, folder: Path, model: nn.Module, card: ModelCard) -> Path:
    """Write a model in a format into a folder, with its card; returns the file.

    Parameters
    ----------
    format_name : str
        ``onnx``, ``pt2`` or ``safetensors``.
    folder : Path
        An existing one.
    model : nn.Module
        uint8 images (B, S, S, 3) to similarities (B, K) and features (B, D); on the CPU, in evaluation mode.
    card : ModelCard

    Raises
    ------
    ConfigError
        For an unknown format, or when torch cannot export the model to it.
    RunFailed
        When onnxruntime and torch give different results.
    """
    if format_name not in FORMATS:
        raise ConfigError(f"--format {format_name!r} is not known; give one of {', '.join(FORMATS)}")
    (folder / CARD).write_text(card.model_dump_json(indent=1))
    try:
        return FORMATS[format_name](folder, model, card)
    except ConfigError as error:
        raise ConfigError(f"{error}. Its weights can be exported: --format safetensors") from error


def example_images(card: ModelCard, count: int = 2) -> Tensor:
    """Random images uint8 (count, S, S, 3); an export needs two, because it would treat a count of 1 as a constant."""
    size = card.decoding["size"]
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _write_onnx(folder: Path, model: nn.Module, card: ModelCard) -> Path:
    file = folder / ONNX
    try:
        program = to_onnx(model, example_images(card, EXAMPLES), OUTPUTS)
    except RunFailed as error:
        raise RunFailed(f"{file}: {error}; use --format pt2, and report this as a bug") from None
    file.write_bytes(program)
    return file


def _write_program(folder: Path, model: nn.Module, card: ModelCard) -> Path:
    torch.export.save(export_module(model, example_images(card)), folder / PROGRAM)
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
