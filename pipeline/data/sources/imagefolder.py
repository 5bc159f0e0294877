"""Folders of image files; the folder that a file lies in is its class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from pyarrow import fs as pafs

from pipeline.data.shards import Quarantined
from pipeline.data.sources.base import IMAGE_SUFFIXES, UNKNOWN_LABEL, Row, Source, cut, digest, find, relative, shuffled
from pipeline.errors import DataError
from pipeline.storage import filesystem

FOREIGN_SUFFIXES = (".bmp", ".gif", ".ppm", ".pgm", ".jp2", ".heic", ".avif")  # images, but not of the contract
SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test"}


def open_imagefolder(source: str, path: str, rows_per_part: int) -> Source:
    """The image files at or below `path`, shuffled, so that no part holds the files of a few classes only."""
    fs, root = filesystem(path)
    if fs.get_file_info(root).type == pafs.FileType.File:
        raise DataError(f"{path} is a file; give the folder of images, or a .parquet or .tar file")
    files = find(fs, root, IMAGE_SUFFIXES + FOREIGN_SUFFIXES)
    names = [relative(file.path, root) for file in files]
    foreign = [name for name in names if name.lower().endswith(FOREIGN_SUFFIXES)]
    images = [name for name in names if not name.lower().endswith(FOREIGN_SUFFIXES)]
    classes = _folder_classes(images)
    class_names = tuple(sorted({c for c in classes if c is not None}))
    number = {name: i for i, name in enumerate(class_names)}
    labelled = [(name, number[c] if c else UNKNOWN_LABEL) for name, c in zip(images, classes, strict=True)]
    parts = tuple(partial(_rows, fs, root, items) for items in cut(shuffled(labelled), rows_per_part))
    lost = tuple(Quarantined(path=name, reason="not JPEG, PNG, WebP or TIFF; convert it to PNG") for name in foreign)
    return Source(
        source, "imagefolder", class_names, parts, digest("imagefolder", class_names, files, root), (fs, root), lost
    )


def _rows(fs: pafs.FileSystem, root: str, files: tuple[tuple[str, int], ...]) -> Iterator[Row | Quarantined]:
    """One row for each (path below `root`, label)."""
    for name, label in files:
        try:
            with fs.open_input_file(f"{root}/{name}") as file:
                data = file.read()
        except OSError as error:
            yield Quarantined(path=name, reason=f"cannot be read: {error}")
        else:
            yield Row(data, name, label, name)


def _folder_classes(names: Sequence[str]) -> list[str | None]:
    """The class folder of each file; below train/val/test folders it is the second folder, and None is unlabelled."""
    folders = [name.split("/")[:-1] for name in names]
    top = {parts[0].lower() for parts in folders if parts}
    depth = 1 if top and top <= SPLIT_FOLDERS else 0
    return [parts[depth] if len(parts) > depth else None for parts in folders]
