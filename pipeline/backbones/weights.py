"""Weights of a network from a file: read without running code, matched by name, identified by a digest."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, first_line
from pipeline.storage import filesystem

WRAPPERS = ("state_dict", "model", "model_state_dict")  # names under which training scripts keep the weights
SHOWN = 5  # names in a message
State = Mapping[str, Tensor]


def read_state(path: str) -> dict[str, Tensor]:
    """The tensors by name of a state dict, from a local file or a URI: safetensors, or what `torch.save` writes.

    Raises
    ------
    ConfigError
        When the file is missing, damaged, or holds something else; no code of a pickle is run.
    """
    try:
        files, inner = filesystem(path)
        with files.open_input_file(inner) as file:
            content = file.read()
        values = _parse(content, path)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"model.weights={path} cannot be read ({first_line(error)}); give a state dict as a .safetensors file, or "
            "one that torch.save wrote"
        ) from error
    return _unwrap(values, path)


def _parse(content: bytes, path: str) -> Any:
    if path.endswith(".safetensors"):
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _unwrap(values: Any, path: str) -> dict[str, Tensor]:
    """The state dict within what a training script saved, without DataParallel's prefix."""
    for name in WRAPPERS:
        if isinstance(values, Mapping) and isinstance(values.get(name), Mapping):
            values = values[name]
    if not isinstance(values, Mapping) or not values or not all(isinstance(v, Tensor) for v in values.values()):
        raise ConfigError(f"model.weights={path} holds no state dict (tensors by name); save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in values.items()}


def check_names(expected: State, given: State, source: str, *, partial: bool) -> None:
    """ConfigError that names what is missing and what is unexpected, unless `partial` allows it."""
    expected = {name: value for name, value in expected.items() if name in given or not _is_count(name)}
    missing, unexpected = expected.keys() - given.keys(), given.keys() - expected.keys()
    other = {name for name in expected.keys() & given.keys() if expected[name].shape != given[name].shape}
    if len(missing) == len(expected):
        raise ConfigError(
            f"model.weights={source} has nothing of the network: it needs {_some(expected)}, and the file has "
            f"{_some(given)}"
        )
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": other}
    found = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in faults.items() if names)
    if found and (other or not partial):
        remedy = "" if other else ", or set model.partial_weights=true to leave them as they are"
        raise ConfigError(f"model.weights={source} does not fit the network ({found}); give its own weights{remedy}")


def _is_count(name: str) -> bool:
    """BatchNorm's count of batches, which files of older torch versions do not have."""
    return name.endswith("num_batches_tracked")


def _some(names: Any) -> str:
    first = sorted(names)[:SHOWN]
    return ", ".join(first) + (", ..." if len(names) > SHOWN else "")


def load_state(module: nn.Module, state: State, source: str, *, partial: bool) -> None:
    """Put a state dict into a network; ConfigError when names or shapes do not fit."""
    check_names(module.state_dict(), state, source, partial=partial)
    module.load_state_dict(state, strict=False)  # what may differ has been checked


def digest(state: State) -> str:
    """SHA-256 over names, types, shapes and values: the same for equal weights, whatever file they came from."""
    total = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
