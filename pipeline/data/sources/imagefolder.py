"""Folders of image files; the folder that a file lies in is its class.

With a list of classes, folders of other classes are left out without being listed.
"""

from __future__ import annotations

import posixpath
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from pyarrow import fs as pafs

from pipeline.data.class_lists import ClassList
from pipeline.data.formats import HEAD_BYTES, image_format
from pipeline.data.shards import LeftOut, Quarantined
from pipeline.data.sources.base import (
    UNKNOWN_LABEL,
    Row,
    Source,
    cut,
    has_image_suffix,
    read_image,
    shuffled,
    stamp,
)
from pipeline.data.sources.chosen import is_pattern, list_one, list_pattern
from pipeline.data.sources.listing import File, Listing, Skip, list_files, open_file, printable
from pipeline.data.sources.selection import refuse_lacking
from pipeline.errors import DataError
from pipeline.storage import filesystem, raise_storage_fault

SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test"}
ALL_IMAGES = "images"  # the folder of a split that holds images of all classes; it names none
PROBES = 64  # files opened to see whether a folder without any image suffix holds images


def open_imagefolder(source: str, path: str, rows_per_part: int, wanted: ClassList | None = None) -> Source:
    """The image files at or below `path`, shuffled, so that no part holds the files of a few classes only.

    `path` may also be a single image, a text file that lists paths, or a pattern.
    """
    fs, root, listing = _list(path, partial(_skip, wanted) if wanted else None)
    if wanted:
        listing = listing.keep(lambda name: _listed_class(wanted, posixpath.dirname(name)) is not None, wanted.rule)
        classes = _listed_classes(fs, listing.files, wanted)
        others = [entry.path for entry in listing.left_out if entry.rule == wanted.rule]
        refuse_lacking(source, wanted, map(printable, classes.values()), others)
    else:
        classes = _classes(fs, listing.files)
    class_names = tuple(sorted(set(classes.values())))
    number = {name: i for i, name in enumerate(class_names)}
    labels = {folder: number[name] for folder, name in classes.items()}
    order = cut(shuffled(range(len(listing.files))), rows_per_part)
    parts = tuple(partial(_rows, fs, _Files.of([listing.files[i] for i in numbers], labels)) for numbers in order)
    return Source(
        source,
        "imagefolder",
        tuple(printable(name) for name in class_names),
        parts,
        "files and unlisted folders" if wanted else "files",
        listing.seen,
        stamp("imagefolder", class_names, listing.files),
        None if root is None else (fs, root),
        tuple(listing.quarantined),
        tuple(listing.left_out),
    )


def _list(path: str, skip: Skip | None) -> tuple[pafs.FileSystem, str | None, Listing]:
    """The filesystem, root and files of a source; the root is None if the source is not a whole folder."""
    fs, root = filesystem(path)
    try:
        listing = list_files(fs, root, skip)
    except DataError:
        if not is_pattern(path):
            raise
        fs, listing = list_pattern(path)
        return fs, None, listing
    if [file.path for file in listing.files] == [root]:
        return fs, None, list_one(fs, listing.files[0], path)
    return fs, root, listing


class _Files(NamedTuple):
    """Files of a part, in a few bytes each: the driver holds all parts of a source."""

    root: str
    names: bytes
    """Separated by zero bytes, which no name contains."""
    labels: array[int]

    @classmethod
    def of(cls, files: Sequence[File], labels: Mapping[str, int]) -> _Files:
        """The files with the labels of the folders that hold them."""
        names = "\0".join(file.name for file in files)
        own = array("i", (labels.get(posixpath.dirname(file.name), UNKNOWN_LABEL) for file in files))
        return cls(files[0].root, names.encode("utf-8", "surrogateescape"), own)


def _rows(fs: pafs.FileSystem, files: _Files) -> Iterator[Row | Quarantined | LeftOut]:
    """What each of the files holds."""
    names = files.names.decode("utf-8", "surrogateescape").split("\0")
    for name, label in zip(names, files.labels, strict=True):
        shown = printable(name)
        try:
            with open_file(fs, posixpath.join(files.root, name)) as file:
                content = read_image(file, name)
        except OSError as error:
            raise_storage_fault(error)
            yield Quarantined(path=shown, reason=f"cannot be read: {error.strerror or error}")
            continue
        if isinstance(content, str):
            yield LeftOut(path=shown, rule=f"not an image by its content: {content}")
        else:
            yield Row(content, shown, label, shown)


def _classes(fs: pafs.FileSystem, files: Sequence[File]) -> dict[str, str]:
    """The class of each folder that has one: the first part of its name, or the second below train/val/test."""
    depth, names = 0, _folders_with_images(fs, files, 0)
    if names and {name.lower() for name in names} <= SPLIT_FOLDERS:
        depth, names = 1, {name for name in _folders_with_images(fs, files, 1) if name.lower() != ALL_IMAGES}
    folders = {posixpath.dirname(file.name) for file in files}
    return {folder: name for folder in folders if (name := _part(folder, depth)) in names}


def _part(folder: str, depth: int) -> str:
    """The part of a folder's name `depth` levels below the root; empty if it has fewer levels."""
    return next(iter(folder.split("/")[depth:]), "")


def _skip(wanted: ClassList, folder: str) -> str | None:
    """The rule that leaves a folder out, or None if it belongs to a listed class or may hold one."""
    may_hold_classes = folder.lower() in SPLIT_FOLDERS
    return None if may_hold_classes or _listed_class(wanted, folder) is not None else wanted.rule


def _listed_class(wanted: ClassList, folder: str) -> str | None:
    """The listed class that a folder belongs to: its first part, or its second below train/val/test."""
    first, *rest = folder.split("/")
    if printable(first) not in wanted and first.lower() in SPLIT_FOLDERS and rest:
        first = rest[0]
    return first if printable(first) in wanted else None


def _listed_classes(fs: pafs.FileSystem, files: Sequence[File], wanted: ClassList) -> dict[str, str]:
    """The listed class of each folder; a class without an image does not count."""
    folders = {posixpath.dirname(file.name) for file in files}
    classes = {folder: name for folder in folders if (name := _listed_class(wanted, folder))}
    held = _with_images(fs, files, lambda folder: classes.get(folder, ""))
    return {folder: name for folder, name in classes.items() if name in held}


def _folders_with_images(fs: pafs.FileSystem, files: Sequence[File], depth: int) -> set[str]:
    """The folders `depth` levels below the root that hold images; a folder of annotations or notes is not a class."""
    return _with_images(fs, files, lambda folder: _part(folder, depth))


def _with_images(fs: pafs.FileSystem, files: Sequence[File], name_of: Callable[[str], str]) -> set[str]:
    """The names with an image; `name_of` gives each folder its name, or an empty one."""
    held: dict[str, list[File]] = {}
    for file in files:
        if name := name_of(posixpath.dirname(file.name)):
            held.setdefault(name, []).append(file)
    return {name for name, own in held.items() if _hold_an_image(fs, own)}


def _hold_an_image(fs: pafs.FileSystem, files: Sequence[File]) -> bool:
    """Whether one of the files is an image: by its suffix, or else by the content of a sample."""
    if any(has_image_suffix(file.name) for file in files):
        return True
    with ThreadPoolExecutor(16) as pool:  # remote opens are latency, not work
        return any(pool.map(partial(_is_image, fs), shuffled(files)[:PROBES]))


def _is_image(fs: pafs.FileSystem, file: File) -> bool:
    try:
        with open_file(fs, file.path) as handle:
            return image_format(handle.read(HEAD_BYTES)) is not None
    except OSError as error:
        raise_storage_fault(error)
        return False  # quarantined when it is read
