"""WebDataset tar files: consecutive members with the same stem are a sample."""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath

from braceexpand import braceexpand
from pyarrow import fs as pafs

from pipeline.data.shards import Quarantined
from pipeline.data.sources.base import IMAGE_SUFFIXES, UNKNOWN_LABEL, Row, Source, digest, find, named_classes
from pipeline.errors import DataError
from pipeline.storage import filesystem

TAR_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error)


def open_webdataset(source: str, path: str, rows_per_part: int) -> Source:
    """One part for each tar file of a pattern: it cannot be cut without reading it."""
    found = [_expand(piece) for piece in braceexpand(path)]
    fs, root, _ = found[0]
    files = [info for _, _, infos in found for info in infos]
    location = filesystem(path) if len(found) == 1 else None
    class_names = named_classes(fs, root)
    parts = tuple(partial(_rows, fs, info.path) for info in files)
    return Source(source, "webdataset", class_names, parts, digest("webdataset", class_names, files, root), location)


def _expand(path: str) -> tuple[pafs.FileSystem, str, list[pafs.FileInfo]]:
    """(filesystem, folder, tar files) of a tar file, a folder of them, or a pattern with ``*``, ``?``, ``[``."""
    fs, inner = filesystem(path)
    kind = fs.get_file_info(inner).type
    if kind == pafs.FileType.Directory:
        folder, files = inner, find(fs, inner, (".tar",))
    elif kind == pafs.FileType.File:
        folder, files = posixpath.dirname(inner), find(fs, inner)
    else:
        folder = re.split(r"[*?\[]", inner)[0].rpartition("/")[0]
        files = [f for f in find(fs, folder) if PurePosixPath(f.path).match(inner)]
    if not files:
        remedy = "give a .tar, a folder of them, or a pattern such as x-{000..010}.tar"
        raise DataError(f"no tar file matches {path}; {remedy}")
    return fs, folder, files


def _rows(fs: pafs.FileSystem, path: str) -> Iterator[Row | Quarantined]:
    """The images of every sample up to the archive's end, or to its break, which is quarantined."""
    name, last = posixpath.basename(path), "the start"
    try:
        with fs.open_input_file(path) as file, tarfile.open(fileobj=file, mode="r:*") as tar:
            for last, sample in _samples(tar):
                yield from _sample_rows(f"{name}: {last}", last, sample)
            if not _reached_end(tar):
                yield Quarantined(path=name, reason=f"no end-of-archive mark after {last}, perhaps cut short there")
    except TAR_ERRORS as error:
        yield Quarantined(path=name, reason=f"broken after {last} ({error}); what follows is lost")


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, {suffix: content}); where the archive breaks, what is whole of the last sample comes first."""
    last, sample = "", dict[str, bytes]()
    try:
        for info in tar:
            if info.isfile():
                key, suffix = _key_and_suffix(info.name)
                if sample and (key != last or suffix in sample):
                    yield last, sample
                    sample = {}
                content = tar.extractfile(info)
                assert content is not None  # only None for members that are no regular files
                last, sample[suffix] = key, content.read()
    except TAR_ERRORS:
        if sample:
            yield last, sample
        raise
    if sample:
        yield last, sample


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Split a member's name at the first dot of its last piece, as WebDataset does."""
    folder, file = posixpath.split(name)
    stem, dot, suffix = file.partition(".")
    return posixpath.join(folder, stem), (dot + suffix).lower()


def _reached_end(tar: tarfile.TarFile) -> bool:
    """Whether reading stopped at the zero block that ends an archive; tarfile also stops, silently, at garbage."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    return tar.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _sample_rows(where: str, key: str, sample: dict[str, bytes]) -> Iterator[Row | Quarantined]:
    images = {suffix: data for suffix, data in sample.items() if suffix in IMAGE_SUFFIXES}
    if not images:
        yield Quarantined(path=where, reason=f"no image among {sorted(sample)}; it must end in {IMAGE_SUFFIXES}")
        return
    try:
        label = _sample_label(sample)
    except (ValueError, TypeError, AttributeError) as error:
        yield Quarantined(path=where, reason=f"the label is no integer: {error}", rows=len(images))
        return
    for suffix, data in images.items():
        yield Row(data, key + suffix, label, where + suffix)


def _sample_label(sample: dict[str, bytes]) -> int:
    if ".cls" in sample:
        return int(sample[".cls"])
    label = json.loads(sample[".json"]).get("label") if ".json" in sample else None
    if label is None:
        return UNKNOWN_LABEL
    if type(label) is not int:
        raise TypeError(f"{label!r} under 'label' in the .json")
    return label
