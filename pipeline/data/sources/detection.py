"""Detects the kind of source at a plain path from the files there."""

from __future__ import annotations

import posixpath

from pyarrow import fs as pafs

from pipeline.data.formats import HEAD_BYTES
from pipeline.data.sources.base import has_image_suffix
from pipeline.data.sources.chosen import is_pattern, list_pattern
from pipeline.data.sources.listing import list_files, open_file
from pipeline.data.sources.parquet import PARQUET_SUFFIXES
from pipeline.data.sources.tar import MODES, TAR_SUFFIXES, ZSTD
from pipeline.errors import DataError
from pipeline.storage import filesystem


def detect(path: str) -> str | None:
    """The kind of the source at `path`, or None when nothing is there.

    Raises
    ------
    DataError
        When the path holds images in several forms, so that one of them would be dropped.
    """
    fs, root = filesystem(path)
    try:
        listing = list_files(fs, root)
    except DataError:
        if "{" in path or path.lower().endswith(TAR_SUFFIXES):
            return "webdataset"
        return _kind_of_folder(path, [file.name for file in list_pattern(path)[1].files]) if is_pattern(path) else None
    names = [file.name for file in listing.files]
    if [file.path for file in listing.files] == [root]:
        return _kind_of_file(fs, root)
    return _kind_of_folder(path, names)


def _kind_of_file(fs: pafs.FileSystem, path: str) -> str:
    """The kind of a single file, by its name or else by its content."""
    if path.lower().endswith(PARQUET_SUFFIXES):
        return "parquet"
    if path.lower().endswith(TAR_SUFFIXES):
        return "webdataset"
    with open_file(fs, path) as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(b"PAR1"):
        return "parquet"
    return "webdataset" if head[257:262] == b"ustar" or head.startswith((*MODES, ZSTD)) else "imagefolder"


def _kind_of_folder(path: str, names: list[str]) -> str:
    tars = [name for name in names if name.lower().endswith(TAR_SUFFIXES)]
    tables = [name for name in names if name.lower().endswith(PARQUET_SUFFIXES)]
    images = [name for name in names if has_image_suffix(name)]
    if tars and {_stem(name) for name in tables} <= {_stem(name) for name in tars}:
        tables = []  # img2dataset writes a table of addresses beside each tar
    found = {"parquet": tables, "webdataset": tars, "imagefolder": images}
    kinds = [kind for kind, files in found.items() if files]
    if len(kinds) > 1:
        counts = ", ".join(f"{len(found[kind]):,} for {kind}:PATH (such as {found[kind][0]!r})" for kind in kinds)
        raise DataError(
            f"{path!r} holds files of several kinds: {counts}; choose one kind, for example {kinds[0]}:{path}; the "
            "others are then left out and listed"
        )
    if not kinds and any(posixpath.basename(name) == "dataset_info.json" for name in names):
        raise DataError(
            f"{path!r} holds Arrow files that `save_to_disk` of Hugging Face datasets wrote; save the data set with "
            "`dataset.to_parquet(...)` and ingest that"
        )
    return kinds[0] if kinds else "imagefolder"


def _stem(name: str) -> str:
    return name.partition(".")[0]
