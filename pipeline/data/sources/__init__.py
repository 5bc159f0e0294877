"""Sources of images: each lists itself cheaply, then yields its rows part by part.

A source string is ``digits``, ``imagefolder:PATH``, ``parquet:PATH``, ``webdataset:PATTERN``,
``torchvision:NAME:PATH``, or a plain path whose kind is detected.

Where a source allows it, its images are read in a shuffled order, the same each time.
"""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Callable

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.data.sources.base import IMAGE_SUFFIXES, Part, Row, Source, find
from pipeline.data.sources.digits import open_digits
from pipeline.data.sources.imagefolder import open_imagefolder
from pipeline.data.sources.parquet import open_parquet
from pipeline.data.sources.torchvision_sets import open_torchvision
from pipeline.data.sources.webdataset import open_webdataset
from pipeline.errors import DataError
from pipeline.storage import filesystem

__all__ = ["Part", "Row", "Source", "open_source"]

_OPENERS: dict[str, Callable[[str, str, int], Source]] = {
    "digits": open_digits,
    "imagefolder": open_imagefolder,
    "parquet": open_parquet,
    "webdataset": open_webdataset,
    "torchvision": open_torchvision,
}


def open_source(source: str, rows_per_part: int) -> Source:
    """Parse a source string, list the source and cut it into parts of at most `rows_per_part` rows.

    A tar file cannot be cut without reading it; it is one part whatever its length.

    Raises
    ------
    DataError
        For an unknown kind, a missing path, or a source that cannot be listed.
    """
    try:
        kind, path = _kind_and_path(source)
        opened = _OPENERS[kind](source, path, rows_per_part)
    except UnicodeDecodeError as error:
        raise DataError(f"{source!r} has a file name that is not UTF-8: {error.object!r}; rename it") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot list the source {source!r}: {error}") from error
    if not opened.parts and not opened.quarantined:
        remedy = f"imagefolder looks for {', '.join(IMAGE_SUFFIXES)}, parquet for rows"
        raise DataError(f"{source!r}, read as {kind}, holds no images; {remedy}")
    return opened


def _kind_and_path(source: str) -> tuple[str, str]:
    kind, _, path = source.partition(":")
    if kind == "digits" and not path:
        return "digits", ""
    if kind in _OPENERS and path and not path.startswith("//"):
        return kind, path
    if "{" in source or "*" in source:
        return "webdataset", source
    fs, inner = filesystem(source)
    info = fs.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        if source.lower().endswith(".tar"):
            return "webdataset", source  # may be a pattern
        raise _unknown(source, kind)
    suffixes = {posixpath.splitext(found.path)[1].lower() for found in find(fs, inner)}
    return ("parquet" if ".parquet" in suffixes else "webdataset" if ".tar" in suffixes else "imagefolder"), source


def _unknown(source: str, kind: str) -> DataError:
    near = difflib.get_close_matches(kind, _OPENERS, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    forms = "digits, imagefolder:PATH, parquet:PATH, webdataset:PATTERN, torchvision:NAME:PATH, or a path that exists"
    return DataError(f"{source!r} is neither a source nor an existing path.{hint} Valid sources: {forms}")
