"""Selects the classes on a list from a source that has more."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from pipeline.data.class_lists import ClassList
from pipeline.data.shards import LeftOut, Quarantined
from pipeline.data.sources.base import UNKNOWN_LABEL, Row, Seen, Source, SourcePart
from pipeline.errors import DataError

NAMED = 5  # classes that a message names


def select_classes(source: Source, wanted: ClassList) -> Source:
    """The source with only the rows of the listed classes; others are left out when they are read, and counted.

    Raises
    ------
    DataError
        When the source names no classes, or lacks one of the list.
    """
    if not source.class_names:
        raise DataError(
            f"{source.name!r}, read as {source.kind}, names no classes, so the classes of {wanted.name} cannot be "
            "selected; leave --classes out, or name the classes in a dataset.json with a list `class_names`"
        )
    others = [name for name in source.class_names if name not in wanted]
    refuse_lacking(source.name, wanted, source.class_names, others)
    names = [name for name in source.class_names if name in wanted]
    new_labels = {old: names.index(name) for old, name in enumerate(source.class_names) if name in wanted}
    dropped = {old: f"class {name}" for old, name in enumerate(source.class_names) if name not in wanted}
    dropped[UNKNOWN_LABEL] = "images without a class"
    parts = tuple(partial(_rows, part, new_labels, dropped, wanted.rule) for part in source.parts)
    mark = hashlib.sha256(json.dumps([source.stamp, names]).encode()).hexdigest()
    return replace(source, class_names=tuple(names), parts=parts, stamp=mark)


def refuse_lacking(source: str, wanted: ClassList, found: Iterable[str], others: Sequence[str]) -> None:
    """DataError for listed classes that a source lacks; `others` are those that it has instead."""
    lacking = set(wanted.images) - set(found)
    if lacking:
        instead = f"; it has {some_of(others)} instead" if others else ""
        raise DataError(
            f"{source!r} has no images of {some_of(lacking)} from the list of classes {wanted.name}{instead}. Complete "
            "the source, give the folder that holds the folders of the classes, or choose another list"
        )


def some_of(found: Iterable[str]) -> str:
    """The first of the names, and how many more there are."""
    names = sorted(found)
    shown = ", ".join(map(repr, names[:NAMED]))
    return f"{shown} and {len(names) - NAMED:,} more" if len(names) > NAMED else shown


def _rows(
    part: SourcePart, new_labels: Mapping[int, int], dropped: Mapping[int, str], rule: str
) -> Iterator[Row | Quarantined | LeftOut | Seen]:
    """A part's rows with their new labels. A label that is out of range stays, and its row is quarantined later."""
    left_out = Counter[str]()
    for entry in part():
        if not isinstance(entry, Row):
            yield entry
        elif entry.label in dropped:
            left_out[dropped[entry.label]] += 1
        else:
            yield entry._replace(label=new_labels.get(entry.label, entry.label))
    for name, rows in left_out.items():
        yield LeftOut(path=name, rule=rule, files=rows)
