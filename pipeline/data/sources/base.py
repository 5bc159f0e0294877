"""What every source shares: rows, parts, and how a source is cut and identified."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pyarrow import fs as pafs

from pipeline.data.formats import HEAD_BYTES, describe, image_format
from pipeline.data.shards import LeftOut, Quarantined
from pipeline.data.sources.listing import File, open_file
from pipeline.errors import DataError

_SUFFIXES = """
.jpg .jpeg .jpe .jfif .pjpeg .pjp .png .apng .webp .tif .tiff .gif .bmp .dib .ppm .pgm .pbm .pnm .pfm .jp2 .j2k .jpf
.jxl .heic .heif .avif .ico .tga .svg .psd .exr .hdr .dcm .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf
"""
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
"""An unreadable file with such a suffix counts as a lost image. Which files are images is decided by their content."""
UNKNOWN_LABEL = -1
ORDER_SEED = 0  # of every shuffle during ingest; fixed, because this order is not part of the experiment's randomness

T = TypeVar("T")


class Row(NamedTuple):
    """One encoded image as the source has it: unverified bytes, its path, its label (-1 = unknown)."""

    data: bytes
    path: str
    label: int
    where: str  # names the row in a quarantine entry


class Seen(NamedTuple):
    """`number` more files, rows or members were seen; for sources that cannot count them while they are listed."""

    number: int


SourcePart = Callable[[], Iterator[Row | Quarantined | LeftOut | Seen]]
"""Reads a slice of a source, always in the same order; picklable, so that any process can read it."""


@dataclass(frozen=True)
class Source:
    """An opened source: listed, not read.

    Attributes
    ----------
    unit : str
        What `seen` counts, as the tally at the end of an ingest names it.
    seen : int
        How many of them are known from the listing; parts add those that they find only while reading.
    classes : str
        The list of the classes that are ingested; empty if all are.
    stamp : str
        Digest of the names, sizes and times of the files: only a hint that nothing has changed.
    """

    name: str
    kind: str
    class_names: tuple[str, ...]
    parts: tuple[SourcePart, ...]
    unit: str
    seen: int
    stamp: str
    location: tuple[pafs.FileSystem, str] | None = None
    quarantined: tuple[Quarantined, ...] = ()  # found while listing
    left_out: tuple[LeftOut, ...] = ()
    classes: str = ""


def refuse_overlap(source: Source, fs: pafs.FileSystem, root: str, out: str) -> None:
    """Refuse an `out` inside the source, also through links: the next call would read it."""
    if source.location and source.location[0].equals(fs):
        is_local = isinstance(fs, pafs.LocalFileSystem)
        inner, outer = (os.path.realpath(path) if is_local else path for path in (root, source.location[1]))
        if f"{inner}/".startswith(f"{outer}/"):
            raise DataError(f"{out} lies inside the source {source.name}; choose a folder outside the source")


def read_image(file: Any, name: str) -> bytes | str:
    """The content of an open file if it is an image, else a description. `name` decides only for damaged images.

    Of files that are not images, only the first bytes are read.
    """
    if has_image_suffix(name):
        return bytes(file.read())
    head = bytes(file.read(HEAD_BYTES))
    return describe(head) if image_format(head) is None else head + file.read()


def has_image_suffix(name: str) -> bool:
    """Whether the name has the suffix of an image; the query string of a URL is ignored."""
    return posixpath.splitext(name.partition("?")[0])[1].lower() in IMAGE_SUFFIXES


def shuffled(items: Sequence[T], *key: int) -> list[T]:
    """The items in an order that depends on their number and `key` only."""
    order = np.random.default_rng([ORDER_SEED, *key]).permutation(len(items))
    return [items[i] for i in order]


def cut(items: Sequence[T], size: int) -> list[tuple[T, ...]]:
    """The items in tuples of `size`, the last one shorter."""
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


def pack(lengths: Iterable[int], size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Cut runs of rows, of the given lengths, into parts of `size` rows: lists of (run, start, stop)."""
    part: list[tuple[int, int, int]] = []
    room = size
    for number, length in enumerate(lengths):
        start = 0
        while start < length:
            stop = min(start + room, length)
            part.append((number, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield part
                part, room = [], size
    if part:
        yield part


def stamp(kind: str, class_names: Iterable[str], files: Iterable[File] = ()) -> str:
    """A digest of names, sizes and times: it changes whenever the shards would, and sometimes when they would not."""
    state = hashlib.sha256(json.dumps([kind, list(class_names)]).encode())
    for file in files:
        state.update(json.dumps([file.name, file.size, file.mtime_ns]).encode())
    return state.hexdigest()


def named_classes(fs: pafs.FileSystem, folder: str) -> tuple[str, ...]:
    """``class_names`` of a ``dataset.json`` in `folder`, or none."""
    path = f"{folder}/dataset.json"
    try:
        with open_file(fs, path) as file:
            raw = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    try:
        names = json.loads(raw).get("class_names", [])
        if not isinstance(names, list):
            raise TypeError(f"class_names is {names!r}")
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} is not a JSON object with a list `class_names` ({error}); correct or remove it"
        ) from None
    return tuple(str(name) for name in names)
