"""Images that are chosen by name: a single file, a text file that lists paths, or a pattern such as `a/*.png`."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import replace

from pyarrow import fs as pafs

from pipeline.data.formats import HEAD_BYTES, describe, image_format
from pipeline.data.shards import LeftOut, Quarantined
from pipeline.data.sources.base import has_image_suffix
from pipeline.data.sources.listing import File, Listing, list_files, open_file, printable
from pipeline.errors import DataError
from pipeline.storage import Place, filesystem

LIST_SUFFIXES = (".txt", ".lst", ".list")
_MARKS = re.compile(r"[*?\[]")


def is_pattern(path: str) -> bool:
    """Whether a path, which does not exist literally, is a pattern."""
    return _MARKS.search(Place.parse(path).path) is not None


def list_pattern(path: str) -> tuple[pafs.FileSystem, Listing]:
    """The files that a pattern matches, and those in folders that it matches: `*`, `?`, `[abc]`, and `**` for folders.

    Raises
    ------
    DataError
        When nothing matches.
    """
    place = Place.parse(path)
    first = _MARKS.search(place.path)
    assert first is not None
    begin = place.path.rfind("/", 0, first.start()) + 1
    fs, root = filesystem(str(replace(place, path=place.path[:begin] or ".")))
    wanted = re.compile(f"{_translate(place.path[begin:])}(/.*)?", re.DOTALL)
    listing = list_files(fs, root)
    found = Listing(
        [file for file in listing.files if wanted.fullmatch(file.name)],
        [entry for entry in listing.left_out if wanted.fullmatch(entry.path)],
        [entry for entry in listing.quarantined if wanted.fullmatch(entry.path)],
    )
    if not found.seen:
        raise DataError(f"no file matches {path!r}; correct the pattern, or give the folder")
    return fs, found


def _translate(pattern: str) -> str:
    """A shell pattern as a regular expression."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translated(piece: str) -> str:
        if len(piece) > 1 and piece[0] == "[" and piece[-1] == "]":
            return f"[^{piece[2:]}" if piece[1] == "!" else piece
        return parts.get(piece, re.escape(piece))

    return "".join(map(translated, re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", pattern)))


def list_one(fs: pafs.FileSystem, file: File, path: str) -> Listing:
    """The files that a single file stands for: itself if it is an image, else the files that it lists.

    Raises
    ------
    DataError
        When it is neither.
    """
    with open_file(fs, file.path) as handle:
        head = bytes(handle.read(HEAD_BYTES))
    if image_format(head) is not None or has_image_suffix(file.name):
        return Listing([file])
    if not file.name.lower().endswith(LIST_SUFFIXES):
        raise DataError(
            f"{path!r} is a file but not an image ({describe(head)}); give an image, a folder of images, a .txt file "
            "with one path per line, or a .parquet or .tar file"
        )
    return _read_list(fs, file, path)


def _read_list(fs: pafs.FileSystem, file: File, path: str) -> Listing:
    """The files of a list, whose paths are absolute or relative to the folder of the list."""
    with open_file(fs, file.path) as handle:
        lines = bytes(handle.read()).decode("utf-8-sig", "surrogateescape").splitlines()
    names = [posixpath.normpath(posixpath.join(file.root, line.strip())) for line in lines if _is_path(line)]
    if not names:
        raise DataError(f"{path!r} lists no files; write one path per line")
    root = posixpath.commonpath([posixpath.dirname(name) for name in names])
    listing, seen = Listing(), set[str]()
    for name in names:
        own = posixpath.relpath(name, root)
        if name in seen:
            listing.left_out.append(LeftOut(path=printable(own), rule=f"listed twice in {posixpath.basename(path)}"))
            continue
        seen.add(name)
        entry = _look_up(fs, root, own)
        if isinstance(entry, File):
            listing.files.append(entry)
        else:
            listing.quarantined.append(entry)
    return listing


def _is_path(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def _look_up(fs: pafs.FileSystem, root: str, name: str) -> File | Quarantined:
    path = posixpath.join(root, name)
    if isinstance(fs, pafs.LocalFileSystem):  # which accepts only UTF-8 paths
        if not os.path.isfile(path):
            return Quarantined(path=printable(name), reason="cannot be read: there is no such file")
        info = os.stat(path)
        return File(root, name, info.st_size, info.st_mtime_ns)
    found = fs.get_file_info(path)
    if not found.is_file:
        return Quarantined(path=name, reason="cannot be read: there is no such file")
    return File(root, name, found.size, found.mtime_ns)
