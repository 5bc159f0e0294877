"""WebDataset tars: members whose names are equal up to the first dot form a sample, with one label for its images.

Every member whose content is an image is a row. The members of a sample may come in any order.
"""

from __future__ import annotations

import itertools
import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from braceexpand import braceexpand
from pyarrow import fs as pafs

from pipeline.data.shards import LeftOut, Quarantined
from pipeline.data.sources.base import UNKNOWN_LABEL, Row, Seen, Source, named_classes, stamp
from pipeline.data.sources.listing import Listing, list_files, printable
from pipeline.data.sources.tar import LABEL_SUFFIXES, TAR_SUFFIXES, Member, read_members
from pipeline.errors import DataError
from pipeline.storage import filesystem

HELD_BYTES = 64 << 20  # of the images of one tar that wait for their labels
LABEL_KEYS = ("label", "cls")  # in a .json, tried in this order

Entry = Row | Quarantined | LeftOut | Seen


def open_webdataset(source: str, path: str, rows_per_part: int) -> Source:
    """One part for each tar file of a pattern: a tar cannot be cut without reading it."""
    patterns = _expand_braces(path)
    found = [_find_tars(pattern) for pattern in patterns]
    fs, root, _ = found[0]
    files = [file for _, _, listing in found for file in listing.files]
    left_out = tuple(entry for _, _, listing in found for entry in listing.left_out)
    lost = tuple(entry for _, _, listing in found for entry in listing.quarantined)
    class_names = named_classes(fs, root)
    parts = tuple(partial(_rows, fs, file.path, file.name, class_names) for file in files)
    location = filesystem(path) if len(patterns) == 1 else None
    mark = stamp("webdataset", class_names, files)
    seen = len(left_out) + len(lost)
    return Source(source, "webdataset", class_names, parts, "members", seen, mark, location, lost, left_out)


def _expand_braces(path: str) -> list[str]:
    fs, inner = filesystem(path)
    if "{" not in path or fs.get_file_info(inner).type != pafs.FileType.NotFound:
        return [path]
    try:
        return list(braceexpand(path))
    except ValueError as error:
        raise DataError(f"the pattern {path!r} cannot be expanded: {error}; close its braces") from None


def _find_tars(pattern: str) -> tuple[pafs.FileSystem, str, Listing]:
    """(filesystem, folder, tars) of a tar file, a folder of them, or a pattern with ``*``, ``?``, ``[``."""
    fs, inner = filesystem(pattern)
    kind = fs.get_file_info(inner).type
    if kind == pafs.FileType.Directory:
        folder = inner
        listing = list_files(fs, inner).keep(lambda name: name.lower().endswith(TAR_SUFFIXES), "not a tar file")
    elif kind == pafs.FileType.File:
        folder, listing = posixpath.dirname(inner), list_files(fs, inner)
    else:
        folder = re.split(r"[*?\[]", inner)[0].rpartition("/")[0] or "/"
        listing = Listing([file for file in list_files(fs, folder).files if PurePosixPath(file.path).match(inner)])
    if not listing.files:
        remedy = "give a .tar, a folder of them, or a pattern such as x-{000..010}.tar"
        raise DataError(f"no tar file matches {pattern!r}; {remedy}")
    return fs, folder, listing


def _rows(fs: pafs.FileSystem, path: str, tar: str, class_names: tuple[str, ...]) -> Iterator[Entry]:
    """The images of a tar with their labels, and what becomes of every other member."""
    joiner = _Joiner(printable(tar), class_names)
    for member in read_members(fs, path, tar):
        if isinstance(member, Member):
            yield from joiner.add(member)
        else:
            yield member
    yield from joiner.finish()


def key_of(name: str) -> str:
    """The sample that a member belongs to: its name up to the first dot after the last slash, as in WebDataset."""
    folder, file = posixpath.split(name)
    return posixpath.join(folder, file.partition(".")[0])


class _Label(NamedTuple):
    """A label from a member of the tar, -1 for metadata without one; or why it cannot be read."""

    member: str
    value: int
    problem: str = ""


@dataclass
class _Sample:
    """Members of one key: images as (name, content), and labels by their names without suffix."""

    images: list[tuple[str, bytes]] = field(default_factory=list)
    labels: dict[str, list[_Label]] = field(default_factory=dict)

    def label_of(self, image: str) -> int:
        """The label that shares the image's whole stem, or else the one named by the key alone; -1 without any.

        Raises
        ------
        ValueError
            When a label cannot be read, or two disagree.
        """
        labels = self.labels.get(posixpath.splitext(image)[0]) or self.labels.get(key_of(image)) or []
        for label in labels:
            if label.problem:
                raise ValueError(label.problem)
        found = {label.value for label in labels} - {UNKNOWN_LABEL}
        if len(found) > 1:
            raise ValueError(f"its labels disagree: {sorted(found)}; keep one of them")
        return next(iter(found), UNKNOWN_LABEL)


class _Joiner:
    """Joins the images of a tar to their labels, whichever come first.

    Images that have no label yet wait until the tar ends, or until more than `HELD_BYTES` of them wait.
    """

    def __init__(self, tar: str, class_names: tuple[str, ...]) -> None:
        self.tar = tar
        self.class_names = class_names
        self.waiting: dict[str, _Sample] = {}
        self.held_bytes = 0
        self.unlabelled = set[str]()  # keys of images that were released without a label
        self.last = ""
        self.left_out: dict[tuple[str, str], int] = {}  # (suffix, rule) -> members

    def add(self, member: Member) -> Iterator[Entry]:
        """Add a member; yield the rows that need not wait any longer."""
        name, content = member
        if isinstance(content, str):
            self._leave_out(name, f"not an image by its content: {content}")
            return
        yield from self._release_last(name)
        self.last = key_of(name)
        sample = self.waiting.setdefault(self.last, _Sample())
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() in LABEL_SUFFIXES:
            label = _read_label(name, content, self.class_names)
            self._refuse_late_label(label, sample)
            sample.labels.setdefault(stem, []).append(label)
        else:
            sample.images.append((name, content))
            self.held_bytes += len(content)
            yield from self._release_oldest()

    def finish(self) -> Iterator[Entry]:
        """Yield what still waits, and the members that were left out, one entry per suffix and rule."""
        while self.waiting:
            yield from self._release(next(iter(self.waiting)))
        for (suffix, rule), count in self.left_out.items():
            yield LeftOut(path=f"{self.tar}: *{suffix}", rule=rule, files=count)

    def _release_last(self, name: str) -> Iterator[Entry]:
        """Release the last sample if it is complete and the next member starts another, perhaps of the same name."""
        sample = self.waiting.get(self.last)
        if sample and sample.images and sample.labels:
            names = [image for image, _ in sample.images]
            if key_of(name) != self.last or name in names:
                yield from self._release(self.last)

    def _release_oldest(self) -> Iterator[Entry]:
        while self.held_bytes > HELD_BYTES:
            oldest = next(key for key, sample in self.waiting.items() if sample.images)
            if oldest == self.last:
                return
            yield from self._release(oldest)

    def _release(self, key: str) -> Iterator[Entry]:
        sample = self.waiting.pop(key)
        for name, content in sample.images:
            self.held_bytes -= len(content)
            where = f"{self.tar}: {name}"
            try:
                label = sample.label_of(name)
            except ValueError as error:
                yield Quarantined(path=where, reason=str(error))
                continue
            if label == UNKNOWN_LABEL:
                self.unlabelled.add(key)
            yield Row(content, name, label, where)
        of = "of an image" if sample.images else "without an image of the same name up to the first dot"
        for given in itertools.chain(*sample.labels.values()):
            is_metadata = given.value == UNKNOWN_LABEL and not given.problem
            self._leave_out(given.member, f"metadata {of}, without a label" if is_metadata else f"label {of}")

    def _leave_out(self, name: str, rule: str) -> None:
        kind = posixpath.splitext(name)[1].lower(), rule
        self.left_out[kind] = self.left_out.get(kind, 0) + 1

    def _refuse_late_label(self, label: _Label, sample: _Sample) -> None:
        """Refuse a label whose image could not wait for it: it must not be dropped silently."""
        is_late = key_of(label.member) in self.unlabelled and not sample.images
        if is_late and (label.problem or label.value != UNKNOWN_LABEL):
            raise DataError(
                f"{self.tar} is not sorted: more than {HELD_BYTES >> 20} MiB of images lie between {label.member} and "
                "its image; write the tar again with `tar --sort=name`"
            )


def _read_label(member: str, content: bytes, class_names: tuple[str, ...]) -> _Label:
    try:
        return _Label(member, parse_label(posixpath.splitext(member)[1].lower(), content, class_names))
    except ValueError as error:
        return _Label(member, UNKNOWN_LABEL, str(error))


def parse_label(suffix: str, content: bytes, class_names: tuple[str, ...]) -> int:
    """The label in a .cls (a number or the name of a class) or in a .json (under one of `LABEL_KEYS`); -1 for none.

    Raises
    ------
    ValueError
        When the content is anything else.
    """
    if suffix == ".cls":
        return _number(content.decode("utf-8-sig", "replace").strip(), class_names)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the .json beside the image is malformed: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"the .json beside the image is {_short(values)}, not an object with a 'label'")
    value = next((values[key] for key in LABEL_KEYS if values.get(key) is not None), UNKNOWN_LABEL)
    return _number(value, class_names)


def _number(value: Any, class_names: tuple[str, ...]) -> int:
    if isinstance(value, str) and value in class_names:
        return class_names.index(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}(\.0*)?", value):
        return int(value.partition(".")[0])
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
        return int(value)
    remedy = "give an integer" if class_names else "give an integer, or list the names in dataset.json as `class_names`"
    raise ValueError(f"the label {_short(value)} is not an integer; {remedy}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
