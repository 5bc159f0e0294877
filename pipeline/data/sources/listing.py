"""All files of a source: links are followed, each folder is read once, and nothing is skipped silently."""

from __future__ import annotations

import os
import posixpath
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyarrow import fs as pafs

from pipeline.data.shards import WORK_FOLDER, LeftOut, Quarantined
from pipeline.errors import DataError

SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"}

Skip = Callable[[str], str | None]
"""From a folder's name, the rule that leaves it out with all its contents, or None."""

Identity = tuple[int, int]
"""Device and inode number of a local folder: the same for every path that leads to it."""


class File(NamedTuple):
    """A file of a source: the source's root, and its name, which is the path below the root.

    All files, perhaps millions, share one string as their root.
    """

    root: str
    name: str
    size: int
    mtime_ns: int | None

    @property
    def path(self) -> str:
        """Its path in the filesystem."""
        return posixpath.join(self.root, self.name)


@dataclass
class Listing:
    """Every file below a root: to be read, left out by a rule, or unreachable."""

    files: list[File] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """Number of entries in all."""
        return len(self.files) + len(self.left_out) + len(self.quarantined)

    def keep(self, wanted: Callable[[str], bool], rule: str) -> Listing:
        """This listing, with all files whose names are not `wanted` left out by `rule`."""
        others = [LeftOut(path=printable(file.name), rule=rule) for file in self.files if not wanted(file.name)]
        files = [file for file in self.files if wanted(file.name)]
        return Listing(files, [*self.left_out, *others], self.quarantined)


def list_files(fs: pafs.FileSystem, root: str, skip: Skip | None = None) -> Listing:
    """All files at or below `root`, sorted by name.

    Parameters
    ----------
    skip : callable, optional
        Folders for which it returns a rule are left out as a whole, one entry each; their contents are not listed.

    Raises
    ------
    DataError
        When `root` does not exist.
    OSError
        When `root` itself cannot be listed. Folders below it that cannot be listed are quarantined.
    """
    listing = _list_local(root, skip) if isinstance(fs, pafs.LocalFileSystem) else _list_remote(fs, root, skip)
    listing.files.sort(key=lambda file: file.name)
    return listing


def open_file(fs: pafs.FileSystem, path: str) -> Any:
    """A file opened for reading. pyarrow accepts only UTF-8 paths, so Python opens local files with other names."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return open(path, "rb")
    return fs.open_input_file(path)


def is_of_system(name: str) -> bool:
    """Whether a file of this name was left in the folder by an operating system, or is hidden."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def printable(name: str) -> str:
    """The name with bytes that are not UTF-8 written as escapes, so that it can be printed and stored."""
    return name.encode("utf-8", "backslashreplace").decode()


def rule_by_name(name: str) -> str | None:
    """The rule that leaves a file out by its name alone, or None."""
    pieces = name.split("/")
    if any(piece.startswith(".") and piece not in (".", "..") for piece in pieces):
        return "hidden: its name or that of a folder above it starts with a dot"
    if any(piece.lower() in SYSTEM_NAMES for piece in pieces):
        return "a file of the operating system, not an image of the source"
    if WORK_FOLDER in pieces[:-1]:
        return f"part of an unfinished ingest: it lies in a folder named {WORK_FOLDER}"
    return None


def _list_remote(fs: pafs.FileSystem, root: str, skip: Skip | None) -> Listing:
    info = fs.get_file_info(root)
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{root!r} does not exist; give a path that does")
    if info.type == pafs.FileType.File:
        return Listing([File(*posixpath.split(root), info.size, info.mtime_ns)])
    listing = Listing()
    folders = deque([root])
    while folders:
        for found in fs.get_file_info(pafs.FileSelector(folders.popleft(), recursive=skip is None)):
            name = posixpath.relpath(found.path, root)
            if found.type != pafs.FileType.Directory:
                _add_remote(listing, found, root, name)
            elif rule := skip(name) if skip else None:
                listing.left_out.append(LeftOut(path=name, rule=rule))
            elif skip:
                folders.append(found.path)
    return listing


def _add_remote(listing: Listing, found: pafs.FileInfo, root: str, name: str) -> None:
    """Add an entry that is not a folder to the listing."""
    if rule := rule_by_name(name):
        listing.left_out.append(LeftOut(path=name, rule=rule))
    elif found.type == pafs.FileType.File:
        listing.files.append(File(root, name, found.size, found.mtime_ns))
    else:
        listing.quarantined.append(
            Quarantined(path=name, reason="cannot be read: it is not a file, or has been deleted")
        )


def _list_local(root: str, skip: Skip | None) -> Listing:
    """Walk all folders below `root`, those behind links last, so that a folder gets its own name if it has one."""
    try:
        info = os.stat(root)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{root!r} does not exist; give a path that does") from None
    if not stat.S_ISDIR(info.st_mode):
        return Listing([File(*posixpath.split(root), info.st_size, info.st_mtime_ns)])
    os.scandir(root).close()  # raises here only; below the root, a folder that cannot be listed loses its own files
    listing, names = Listing(), _folders_above(root)
    waiting = deque([""])
    while waiting:
        folder = waiting.popleft()
        for entry in _enter(root, folder, listing, names):
            name = posixpath.join(folder, entry.name)
            if not _is_folder(entry):
                _add(listing, entry, root, name)
            elif rule := skip(name) if skip else None:
                listing.left_out.append(LeftOut(path=printable(name), rule=rule))
            elif entry.is_symlink():
                waiting.append(name)
            else:
                waiting.appendleft(name)
    return listing


def _folders_above(root: str) -> dict[Identity, str]:
    """The folders that hold the root: a link to one of them would lead back here."""
    above, folder = dict[Identity, str](), os.path.realpath(root)
    while folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
        above[_identity(folder)] = "it holds the source itself"
    return above


def _identity(folder: str) -> Identity:
    info = os.stat(folder)
    return info.st_dev, info.st_ino


def _enter(root: str, folder: str, listing: Listing, names: dict[Identity, str]) -> list[os.DirEntry[str]]:
    """The entries of a folder that is reached for the first time; else none, and `listing` gets the reason."""
    path = posixpath.join(root, folder) if folder else root
    try:
        identity = _identity(path)
        if identity in names:
            rule = f"folder reached twice but read only once: {names[identity]}"
            listing.left_out.append(LeftOut(path=printable(folder), rule=rule))
            return []
        names[identity] = f"it has been read as {folder or '.'!r}"
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        reason = f"the folder cannot be listed ({error.strerror}), so its files are unknown"
        listing.quarantined.append(Quarantined(path=printable(folder), reason=reason))
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _add(listing: Listing, entry: os.DirEntry[str], root: str, name: str) -> None:
    """Add a file, or anything else that is not a folder, to the listing."""
    rule = rule_by_name(name)
    try:
        info = entry.stat()
        if not rule and not stat.S_ISREG(info.st_mode):
            rule = "not a regular file but a pipe, socket or device"
        if not rule:
            listing.files.append(File(root, name, info.st_size, info.st_mtime_ns))
    except OSError as error:
        if not rule:
            reason = _dangling(entry) if entry.is_symlink() else f"cannot be read: {error.strerror}"
            listing.quarantined.append(Quarantined(path=printable(name), reason=reason))
    if rule:
        listing.left_out.append(LeftOut(path=printable(name), rule=rule))


def _dangling(entry: os.DirEntry[str]) -> str:
    return f"dangling link: it leads to {printable(os.readlink(entry.path))!r}, where there is no file"
