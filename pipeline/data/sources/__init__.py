"""Sources of images: each lists itself cheaply, then yields its rows part by part.

A source string is ``digits``, ``imagefolder:PATH``, ``parquet:PATH``, ``webdataset:PATTERN``,
``torchvision:NAME:PATH``, or a plain path whose kind is detected.

Where a source allows it, its images are read in a shuffled order, the same each time. Everything in a source is yielded
as a row, quarantined, or left out by a rule, and counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pyarrow as pa

from pipeline.data.class_lists import ClassList
from pipeline.data.sources.base import Row, Seen, Source, SourcePart
from pipeline.data.sources.detection import detect
from pipeline.data.sources.digits import open_digits
from pipeline.data.sources.imagefolder import open_imagefolder
from pipeline.data.sources.listing import printable
from pipeline.data.sources.parquet import DETECT, Columns, open_parquet
from pipeline.data.sources.selection import select_classes
from pipeline.data.sources.torchvision_sets import open_torchvision
from pipeline.data.sources.webdataset import open_webdataset
from pipeline.errors import DataError, did_you_mean
from pipeline.storage import remedy_for

__all__ = ["Columns", "Row", "Seen", "Source", "SourcePart", "open_source"]

_OPENERS: dict[str, Callable[[str, str, int], Source]] = {
    "digits": open_digits,
    "imagefolder": open_imagefolder,
    "parquet": open_parquet,
    "webdataset": open_webdataset,
    "torchvision": open_torchvision,
}


def open_source(source: str, rows_per_part: int, columns: Columns = DETECT, classes: ClassList | None = None) -> Source:
    """Parse a source string, list the source and cut it into parts of at most `rows_per_part` rows.

    A tar file cannot be cut without reading it; it is one part whatever its length.

    Parameters
    ----------
    columns : Columns
        For Parquet: the columns of images and labels, detected where None.
    classes : ClassList, optional
        Take only these classes; by default all.

    Raises
    ------
    DataError
        For an unknown kind, a missing path, or a source that cannot be listed.
    """
    try:
        kind, path = _kind_and_path(source)
        opened = _opener(kind, source, columns, classes)(printable(source), path, rows_per_part)
    except UnicodeError as error:
        raise DataError(f"{source!r} has a name in it that is not UTF-8: {error}; rename that file or folder") from None
    except (OSError, pa.ArrowException) as error:
        remedy = remedy_for(error, "make it readable, or give another source")
        raise DataError(f"cannot list the source {source!r}: {error}; {remedy}") from error
    if not opened.parts and not opened.quarantined:
        raise DataError(f"{source!r}, read as {kind}, holds no images{_what_else(opened)}")
    opened = replace(opened, name=printable(source), classes=classes.name if classes else "")
    return select_classes(opened, classes) if classes and kind != "imagefolder" else opened


def _opener(kind: str, source: str, columns: Columns, classes: ClassList | None) -> Callable[[str, str, int], Source]:
    if kind == "parquet":
        return partial(open_parquet, wanted=columns)
    if columns != DETECT:
        raise DataError(f"{source!r} is read as {kind}; --image-column and --label-column are for Parquet only")
    if kind == "imagefolder":  # it need not list the folders of other classes
        return partial(open_imagefolder, wanted=classes)
    return _OPENERS[kind]


def _what_else(source: Source) -> str:
    if not source.left_out:
        return "; give a folder of image files, Parquet files or tar files that hold images"
    first = source.left_out[0]
    return f"; it left out {len(source.left_out)} files, the first of which is {first.path!r} ({first.rule})"


def _kind_and_path(source: str) -> tuple[str, str]:
    kind, _, path = source.partition(":")
    if kind == "digits" and not path:
        return "digits", ""
    if kind in _OPENERS and path and not path.startswith("//"):
        return kind, path
    detected = detect(source)
    if detected is None:
        forms = "digits, imagefolder:PATH, parquet:PATH, webdataset:PATTERN, torchvision:NAME:PATH"
        hint = did_you_mean(kind, _OPENERS) or "."
        raise DataError(
            f"{source!r} is neither a kind of source nor an existing path{hint} Valid sources: {forms}, or a path that "
            "exists"
        )
    return detected, source
