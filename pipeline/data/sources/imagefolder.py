"""Folders of image files; the folder that a file lies in is its class.

With a list of classes, folders of other classes are left out without a look into them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

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
from pipeline.data.sources.listing import File, list_files, open_file, printable
from pipeline.data.sources.selection import refuse_lacking
from pipeline.errors import DataError
from pipeline.storage import filesystem

SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test"}
ALL_IMAGES = "images"  # the folder of a split that holds images of all classes; it names none
PROBES = 64  # files opened to see whether a folder without any image suffix holds images


def open_imagefolder(source: str, path: str, rows_per_part: int, wanted: ClassList | None = None) -> Source:
    """The image files at or below `path`, shuffled, so that no part holds the files of a few classes only."""
    fs, root = filesystem(path)
    listing = list_files(fs, root, partial(_skip, wanted) if wanted else None)
    if [file.path for file in listing.files] == [root]:
        raise DataError(f"{path!r} is a file; give the folder of images, or a .parquet or .tar file")
    if wanted:
        listing = listing.keep(lambda name: _listed_class(wanted, posixpath.dirname(name)) is not None, wanted.rule)
        classes = _listed_class_of_each(fs, listing.files, wanted)
        others = [entry.path for entry in listing.left_out if entry.rule == wanted.rule]
        refuse_lacking(source, wanted, map(printable, classes.values()), others)
    else:
        classes = _class_of_each(fs, listing.files)
    class_names = tuple(sorted(set(classes.values())))
    number = {name: i for i, name in enumerate(class_names)}
    labelled = [(f.path, f.name, number.get(classes.get(f.name, ""), UNKNOWN_LABEL)) for f in listing.files]
    parts = tuple(partial(_rows, fs, items) for items in cut(shuffled(labelled), rows_per_part))
    return Source(
        source,
        "imagefolder",
        tuple(printable(name) for name in class_names),
        parts,
        "files and unlisted folders" if wanted else "files",
        listing.seen,
        stamp("imagefolder", class_names, listing.files),
        (fs, root),
        tuple(listing.quarantined),
        tuple(listing.left_out),
    )


def _rows(fs: pafs.FileSystem, files: tuple[tuple[str, str, int], ...]) -> Iterator[Row | Quarantined | LeftOut]:
    """What each (path, name below the root, label) holds."""
    for path, name, label in files:
        shown = printable(name)
        try:
            with open_file(fs, path) as file:
                content = read_image(file, name)
        except OSError as error:
            yield Quarantined(path=shown, reason=f"cannot be read: {error.strerror or error}")
            continue
        if isinstance(content, str):
            yield LeftOut(path=shown, rule=f"decided by content: {content}")
        else:
            yield Row(content, shown, label, shown)


def _class_of_each(fs: pafs.FileSystem, files: Sequence[File]) -> dict[str, str]:
    """The class of each file in a folder that holds images: its first folder, or its second below train/val/test."""
    folders = _folders_with_images(fs, files, 0)
    if folders and {folder.lower() for folder in folders} <= SPLIT_FOLDERS:
        folders = _folders_with_images(fs, files, 1)
        folders = {folder: held for folder, held in folders.items() if folder.lower() != ALL_IMAGES}
    return {file.name: folder for folder, held in folders.items() for file in held}


def _skip(wanted: ClassList, folder: str) -> str | None:
    """The rule that leaves a folder out: it is neither that of a listed class, nor may it hold one."""
    may_hold_classes = folder.lower() in SPLIT_FOLDERS
    return None if may_hold_classes or _listed_class(wanted, folder) is not None else wanted.rule


def _listed_class(wanted: ClassList, folder: str) -> str | None:
    """The listed class that a folder belongs to: its first part, or its second below train/val/test."""
    first, *rest = folder.split("/")
    if printable(first) not in wanted and first.lower() in SPLIT_FOLDERS and rest:
        first = rest[0]
    return first if printable(first) in wanted else None


def _listed_class_of_each(fs: pafs.FileSystem, files: Sequence[File], wanted: ClassList) -> dict[str, str]:
    """The class of each file, all of which lie in folders of listed classes; a folder without an image is none."""
    folders: dict[str, list[File]] = {}
    for file in files:
        folders.setdefault(_listed_class(wanted, posixpath.dirname(file.name)) or "", []).append(file)
    return {file.name: name for name, held in folders.items() if _hold_an_image(fs, held) for file in held}


def _folders_with_images(fs: pafs.FileSystem, files: Sequence[File], depth: int) -> dict[str, list[File]]:
    """The files by the folder `depth` levels below the root; a folder of annotations or notes is not a class."""
    folders: dict[str, list[File]] = {}
    for file in files:
        above = file.name.split("/")[:-1]
        if len(above) > depth:
            folders.setdefault(above[depth], []).append(file)
    return {folder: held for folder, held in folders.items() if _hold_an_image(fs, held)}


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
    except OSError:
        return False  # quarantined when it is read
