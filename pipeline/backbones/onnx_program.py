"""Networks as ONNX programs: on a CPU, onnxruntime computes them several times as fast as PyTorch does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, RunFailed, first_line
from pipeline.progress import Echo

TOLERANCE = 1e-4  # difference between torch and onnxruntime, relative to the largest value or to 1
EXAMPLES = 5  # images to export and check with
LEAST_PIXELS = 25_000_000  # to encode: 500 images of 224 pixels, which take torch longer than the export does


class OnnxProgram:
    """A program of `to_onnx` on the CPU, called like its module; in one thread, because actors share the cores.

    RunFailed when onnxruntime cannot be imported.
    """

    def __init__(self, program: bytes) -> None:
        try:
            import onnxruntime  # here, so that all but this also works without it
        except ImportError as error:
            raise RunFailed(
                f"onnxruntime cannot be imported ({first_line(error)}); `pip install onnxruntime` provides it"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in their order."""
        return tuple(map(torch.from_numpy, self._session.run(None, {self._input: images.cpu().contiguous().numpy()})))


def to_onnx(module: nn.Module, images: Tensor, outputs: Sequence[str]) -> bytes:
    """Export a module on the CPU to a program for any batch size, by torch's dynamo exporter, and check the result.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode.
    images : Tensor
        `EXAMPLES` inputs: the export uses two of them, the check all.
    outputs : sequence of str
        Names for its outputs.

    Raises
    ------
    ConfigError
        When torch cannot export the module.
    RunFailed
        When onnxruntime's outputs differ from torch's.
    """
    exported = export_module(module, images[:2])
    made = torch.onnx.export(exported, (), input_names=["images"], output_names=list(outputs), verbose=False)
    assert made is not None
    program = made.model_proto.SerializeToString()
    with torch.inference_mode():
        expected = module(images)
    check_equal((expected,) if isinstance(expected, Tensor) else expected, OnnxProgram(program)(images), outputs)
    return program


def export_module(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The program of a module in evaluation mode, for any number of images; `images` are examples.

    Raises
    ------
    ConfigError
        When torch cannot export the module, as a network of the user's own may be written.
    """
    try:
        return torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:  # torch raises many kinds
        raise ConfigError(
            f"torch.export cannot convert the network ({first_line(error)}); its forward must not branch on values or "
            "treat the number of images as a constant"
        ) from error


def check_equal(expected: Sequence[Tensor], found: Sequence[Tensor], outputs: Sequence[str]) -> None:
    """RunFailed when outputs of onnxruntime differ from torch's by more than `TOLERANCE`."""
    for name, ours, theirs in zip(outputs, expected, found, strict=True):
        difference = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))
        if not difference <= TOLERANCE:  # true also for NaN
            raise RunFailed(
                f"{name} computed by onnxruntime differ from PyTorch's by {difference:.2g}, more than {TOLERANCE}"
            )


def is_worth_it(images: int | None, size: int) -> bool:
    """Whether an export pays off for so many images of `size` pixels; None is an unknown number."""
    return images is None or images * size * size >= LEAST_PIXELS


def faster_program(module: nn.Module, images: Tensor, outputs: Sequence[str], echo: Echo) -> bytes | None:
    """The program of `to_onnx`; None if it fails, with a line that says why."""
    try:
        return to_onnx(module, images, outputs)
    except Exception as error:  # the exporter and onnxruntime raise many kinds
        echo(f"onnxruntime cannot run this network ({first_line(error)}); PyTorch runs it instead, more slowly")
        return None
