"""Folders of image files; the folder that a file lies in is its class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pyarrow import fs as pafs

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
from pipeline.errors import DataError
from pipeline.storage import filesystem

SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test"}
PROBES = 64  # files opened to see whether a folder without any image suffix holds images


def open_imagefolder(source: str, path: str, rows_per_part: int) -> Source:
    """The image files at or below `path`, shuffled, so that no part holds the files of a few classes only."""
    fs, root = filesystem(path)
    listing = list_files(fs, root)
    if [file.path for file in listing.files] == [root]:
        raise DataError(f"{path!r} is a file; give the folder of images, or a .parquet or .tar file")
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
        "files",
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
    return {file.name: folder for folder, held in folders.items() for file in held}


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
