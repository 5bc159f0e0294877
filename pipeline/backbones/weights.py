"""Weights of a network from a file: read without running code, matched by name, identified by a digest."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, first_line
from pipeline.storage import filesystem

SHOWN = 5  # names in a message
PLAIN = "where the network was trained, save only its state dict: torch.save(model.state_dict(), FILE)"
INNER_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What DataParallel, torch.compile, FSDP and activation checkpointing put into the names of what they wrap."""
State = Mapping[str, Tensor]


def read_tensors(path: str) -> dict[str, Tensor]:
    """All tensors of a file or URI, written by safetensors or `torch.save`; those of nested dicts have dotted names.

    Raises
    ------
    ConfigError
        When the file is missing, damaged, or holds something else; no code of a pickle is run.
    """
    try:
        files, inner = filesystem(path)
        with files.open_input_file(inner) as file:
            content = file.read()
    except Exception as error:  # each object store has errors of its own
        remedy = "give the path or URI of a state dict, or copy the file here and give its path"
        raise ConfigError(f"model.weights={path} cannot be read ({first_line(error)}); {remedy}") from error
    try:
        values = _parse(content)
    except Exception:  # torch's messages have escape codes and advise to run the file's code
        raise ConfigError(f"model.weights={path} cannot be read: it is {_describe(content)}; {PLAIN}") from None
    found = dict(_flatten(values)) if isinstance(values, Mapping) else {}
    if not found:
        raise ConfigError(f"model.weights={path} holds no state dict (tensors by name); {PLAIN}")
    return found


def _parse(content: bytes) -> Any:
    if _is_safetensors(content):
        return safetensors.torch.load(content)
    with warnings.catch_warnings(action="ignore"):  # torch warns about TorchScript
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _is_safetensors(content: bytes) -> bool:
    """Whether a file begins with the length of a JSON header that fits into it, and this header."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8


def _describe(content: bytes) -> str:
    """Describe a file that holds no readable state dict."""
    head = content[:512].lstrip().lower()
    for mark, words in (
        (b"<", "an HTML or XML page, perhaps the error page of a download"),
        (b"version https://git-lfs", "a Git LFS pointer instead of the file (run `git lfs pull`)"),
        (b"\x89hdf", "an HDF5 file, as Keras writes it"),
        (b"\x1f\x8b", "compressed by gzip"),
    ):
        if head.startswith(mark):
            return words
    if not content:
        return "empty"
    if content[8:9] == b"{":
        return "safetensors, damaged or cut short"
    return (
        _describe_pickle(content) if content[:2] in (b"PK", b"\x80\x02") else "neither a PyTorch nor a safetensors file"
    )


def _describe_pickle(content: bytes) -> str:
    """Describe what `torch.save` may have written; objects other than tensors are named, and never created."""
    try:
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    except Exception:
        objects = []
    if objects:
        return f"a pickle that holds objects other than tensors ({_some(objects)}) and could run code"
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except zipfile.BadZipFile:
        return "a PyTorch file, damaged or cut short"
    if any(name.endswith("constants.pkl") for name in names):
        return "a TorchScript program"
    return "a PyTorch file, damaged" if any(name.endswith("data.pkl") for name in names) else "a zip archive"


def _flatten(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")


def choose_state(
    tensors: State, expected: State, source: str, *, prefix: str | None = None, partial: bool = False
) -> tuple[dict[str, Tensor], str]:
    """The network's tensors, under its names, and the prefix that they have in the file.

    Training scripts keep networks under many names, often several of them in a file. A prefix is chosen if it alone
    explains all names of the network; the empty prefix is preferred to any other.

    Raises
    ------
    ConfigError
        When several prefixes explain the names and `prefix` does not say which, or no name has that prefix.
    """
    needed = {name for name in expected if not _is_count(name)}
    matches = _count_matches(tensors, needed)
    if max(matches.values(), default=0) < len(needed):
        tensors = {_without_wrappers(name, expected): value for name, value in tensors.items()}
        matches = _count_matches(tensors, needed)
    if prefix is not None:
        chosen = [_named_prefix(prefix, tensors, matches, source)]
    else:
        chosen = _best(matches, tensors, expected)
    complete = bool(chosen) and matches[chosen[0]] == len(needed)
    if len(chosen) > 1 and (complete or partial):
        raise ConfigError(
            f"model.weights={source} has several networks that fit, whose parameter names begin with {_some(chosen)}; "
            "set model.weights_prefix to one of these"
        )
    begin = chosen[0] if chosen else ""
    return {name.removeprefix(begin): value for name, value in tensors.items() if name.startswith(begin)}, begin


def _count_matches(tensors: State, needed: set[str]) -> Counter[str]:
    """How many of the needed names there are under each prefix."""
    return Counter(before for name in tensors for before, after in _splits(name) if after in needed)


def _without_wrappers(name: str, expected: State) -> str:
    """The name without what wrappers have put into its middle, unless the network itself has such a name."""
    for wrapper in INNER_WRAPPERS:
        inner = f".{wrapper}."
        if inner in name and not any(inner in own for own in expected):
            name = name.replace(inner, ".")
    return name


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """All ways to cut a dotted name in two; the first part is empty or ends with a dot."""
    yield "", name
    yield from ((name[: dot.end()], name[dot.end() :]) for dot in re.finditer(r"\.", name))


def _best(matches: Counter[str], tensors: State, expected: State) -> list[str]:
    """The prefixes that explain the most names: of these the empty one, or else those with the network's shapes."""
    most = max(matches.values(), default=0)
    best = sorted(prefix for prefix, found in matches.items() if found == most)
    if "" in best:
        return [""]
    fitting = [prefix for prefix in best if _have_shapes(prefix, tensors, expected)]
    return fitting or best


def _have_shapes(prefix: str, tensors: State, expected: State) -> bool:
    there = ((value, tensors.get(f"{prefix}{name}")) for name, value in expected.items())
    return all(found is None or found.shape == value.shape for value, found in there)


def _named_prefix(wanted: str, tensors: State, matches: Counter[str], source: str) -> str:
    """The prefix that a setting names, with or without what stands before it in the file."""
    given = f"{wanted.rstrip('.')}." if wanted else ""
    found = [prefix for prefix in matches if prefix == given or (given and prefix.endswith(f".{given}"))]
    if given in found or any(name.startswith(given) for name in tensors):
        return given
    if len(found) == 1:
        return found[0]
    known = f"; it has networks under {_some(matches)}" if matches else ""
    raise ConfigError(
        f"model.weights_prefix={wanted} matches {len(found) or 'no'} networks in model.weights={source}{known}; "
        "correct it"
    )


def check_names(expected: State, given: State, source: str, *, partial: bool) -> None:
    """Raise a ConfigError that says what is missing and what is unexpected, unless `partial` allows it."""
    expected = {name: value for name, value in expected.items() if name in given or not _is_count(name)}
    missing, unexpected = expected.keys() - given.keys(), given.keys() - expected.keys()
    other = {name for name in expected.keys() & given.keys() if expected[name].shape != given[name].shape}
    if len(missing) == len(expected):
        raise ConfigError(
            f"model.weights={source} has no weights of this network, which needs {_some(expected)}: the file has "
            f"{_some(given)}; give the network's own weights"
        )
    faults = {"missing": missing, "unexpected": unexpected, "with another shape": other}
    found = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in faults.items() if names)
    if found and (other or not partial):
        remedy = "" if other else ", or set model.partial_weights=true to ignore these names"
        raise ConfigError(
            f"model.weights={source} does not fit the network ({found}); give the network's own weights{remedy}"
        )


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
