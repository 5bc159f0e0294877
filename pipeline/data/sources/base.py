"""What every source shares: rows, parts, and how files are listed and identified."""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image
from pyarrow import fs as pafs

from pipeline.data.shards import WORK_FOLDER, Quarantined
from pipeline.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
UNKNOWN_LABEL = -1
ORDER_SEED = 0  # of every shuffle during ingest, which is the same for all: an order, not a draw of the experiment

T = TypeVar("T")


class Row(NamedTuple):
    """One encoded image as the source has it: unverified bytes, its path, its label (-1 = unknown)."""

    data: bytes
    path: str
    label: int
    where: str  # names the row in a quarantine entry


Part = Callable[[], Iterator[Row | Quarantined]]
"""Reads a slice of a source: picklable, so that any process can, and always in the same order."""


@dataclass(frozen=True)
class Source:
    """An opened source: listed, not read."""

    name: str
    kind: str
    class_names: tuple[str, ...]
    parts: tuple[Part, ...]
    digest: str
    location: tuple[pafs.FileSystem, str] | None = None
    quarantined: tuple[Quarantined, ...] = ()  # found while listing


def shuffled(items: Sequence[T], *key: int) -> list[T]:
    """The items in an order that depends on their number and `key` only."""
    order = np.random.default_rng([ORDER_SEED, *key]).permutation(len(items))
    return [items[i] for i in order]


def cut(items: Sequence[T], size: int) -> list[tuple[T, ...]]:
    """The items in tuples of `size`, the last one shorter."""
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


def pack(lengths: Iterable[int], size: int) -> list[list[tuple[int, int, int]]]:
    """Cut runs of rows, of the given lengths, into parts of `size` rows: lists of (run, start, stop)."""
    parts: list[list[tuple[int, int, int]]] = [[]]
    room = size
    for number, length in enumerate(lengths):
        start = 0
        while start < length:
            if room == 0:
                parts.append([])
                room = size
            stop = min(start + room, length)
            parts[-1].append((number, start, stop))
            room -= stop - start
            start = stop
    return [part for part in parts if part]


def find(fs: pafs.FileSystem, root: str, suffixes: Sequence[str] = ("",)) -> list[pafs.FileInfo]:
    """Files at or below `root` with one of `suffixes`, sorted by path; hidden files and work folders are left out."""
    info = fs.get_file_info(root)
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{root} does not exist; give a path that does")
    if info.type == pafs.FileType.File:
        return [info]
    found = fs.get_file_info(pafs.FileSelector(root, recursive=True))
    files = [f for f in found if f.type == pafs.FileType.File and f.path.lower().endswith(tuple(suffixes))]
    return sorted((f for f in files if _visible(relative(f.path, root))), key=lambda f: f.path)


def _visible(name: str) -> bool:
    return not any(piece.startswith((".", WORK_FOLDER)) for piece in name.split("/"))


def relative(path: str, root: str) -> str:
    """The path of a file below `root`, or its name when it is `root` itself."""
    return posixpath.basename(path) if path == root else posixpath.relpath(path, root)


def digest(kind: str, class_names: Iterable[str], files: Iterable[pafs.FileInfo] = (), root: str = "") -> str:
    """A digest that changes with anything that could change the shards, and not with where the source lies."""
    state = hashlib.sha256(json.dumps([kind, list(class_names)]).encode())
    for file in files:
        state.update(json.dumps([relative(file.path, root), file.size, file.mtime_ns]).encode())
    return state.hexdigest()


def named_classes(fs: pafs.FileSystem, folder: str) -> tuple[str, ...]:
    """``class_names`` of a ``dataset.json`` in `folder`, or none."""
    path = f"{folder}/dataset.json"
    if fs.get_file_info(path).type != pafs.FileType.File:
        return ()
    with fs.open_input_file(path) as file:
        raw = file.read()
    try:
        names = json.loads(raw).get("class_names", [])
        if not isinstance(names, list):
            raise TypeError(f"class_names is {names!r}")
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is no JSON object with a list `class_names` ({error}); correct or remove it") from None
    return tuple(str(name) for name in names)


def png(image: Image.Image) -> bytes:
    """The image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
