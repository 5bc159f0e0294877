"""Members of a tar, read once from front to end, including what tarfile would skip silently."""

from __future__ import annotations

import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from tarfile import EOFHeaderError, InvalidHeaderError  # type: ignore[attr-defined]  # public, unknown to typeshed
from typing import Any, Literal, NamedTuple, Self

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.data.shards import LeftOut, Quarantined
from pipeline.data.sources.base import Seen, has_image_suffix, read_image
from pipeline.data.sources.listing import open_file, printable, rule_by_name
from pipeline.errors import first_line
from pipeline.storage import raise_storage_fault

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
LABEL_SUFFIXES = (".cls", ".json")
Mode = Literal["r:", "r:gz", "r:bz2", "r:xz"]
MODES: dict[bytes, Mode] = {b"\x1f\x8b": "r:gz", b"BZh": "r:bz2", b"\xfd7zXZ\0": "r:xz"}
ZSTD = b"\x28\xb5\x2f\xfd"
DAMAGE = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError, pa.ArrowException, ValueError)


class Member(NamedTuple):
    """A member's name and content, or its description if it is neither an image nor a label."""

    name: str
    content: bytes | str


class _Header(tarfile.TarInfo):
    """A member's header; it records in its archive what tarfile skips while it looks for the next header."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        assert isinstance(archive, _Archive)
        start = archive.offset
        try:
            header = super().fromtarfile(archive)
        except EOFHeaderError:
            archive.ended = True
            raise
        except InvalidHeaderError:
            archive.damaged = True
            raise
        # Concatenated archives start at a record boundary. Zeros before any other place have overwritten a member.
        archive.damaged |= archive.ended and start % tarfile.RECORDSIZE != 0
        archive.ended = False
        return header


class _Archive(tarfile.TarFile):
    """A tar read past zero blocks and damaged headers: tars may be concatenated, and damage affects only its member."""

    tarinfo = _Header
    ignore_zeros = True
    ended = False
    """Whether a zero block, which ends an archive, followed the last member."""
    damaged = False
    """Whether, since this was last reset, there was something else where a header should be."""


def read_members(fs: pafs.FileSystem, path: str, tar: str) -> Iterator[Member | Quarantined | LeftOut | Seen]:
    """Images, labels and everything else in a tar, in its order; damage is quarantined and never raised.

    Parameters
    ----------
    tar : str
        The name of the tar in entries and messages.
    """
    tar, last = printable(tar), ""
    try:
        with open_file(fs, path) as file, _open_archive(file) as archive:
            for header in archive:
                yield from _damage(archive, tar, last)
                if not header.isdir():
                    last = printable(header.name.removeprefix("./"))
                    yield Seen(1)
                    yield _read_member(archive, header, last, tar)
            if not archive.getmembers() and archive.damaged:
                raise tarfile.ReadError("its content is not a tar archive")
            yield from _damage(archive, tar, last)
            if not archive.getmembers():
                yield Quarantined(path=tar, reason="the tar is empty; write it again", rows=0)
            elif not archive.ended:
                reason = f"no end-of-archive mark after {last}: the tar is perhaps cut short there and the rest is lost"
                yield Quarantined(path=tar, reason=reason, rows=0)
    except DAMAGE as error:
        raise_storage_fault(error)
        if last:
            reason = f"broken after {last} ({first_line(error)}); the rest is lost"
            yield Quarantined(path=tar, reason=reason, rows=0)
        else:
            yield Seen(1)
            yield Quarantined(path=tar, reason=f"not a readable tar file: {first_line(error)}")


def _open_archive(file: Any) -> _Archive:
    """The archive in an open file; its first bytes tell how it is compressed."""
    head = file.read(6)
    file.seek(0)
    if not head:
        raise tarfile.ReadError("it is empty")
    if head.startswith(ZSTD):  # which the tarfile of Python 3.11 does not support
        archive = _Archive.open(fileobj=pa.CompressedInputStream(file, "zstd"), mode="r|")
    else:
        mode: Mode = next((mode for magic, mode in MODES.items() if head.startswith(magic)), "r:")
        archive = _Archive.open(fileobj=file, mode=mode)
    assert isinstance(archive, _Archive)
    return archive


def _damage(archive: _Archive, tar: str, last: str) -> Iterator[Quarantined | Seen]:
    """An entry for the damage that was skipped since the last member, if there was any."""
    if archive.damaged:
        where = f"after {last}" if last else "at its start"
        reason = f"damaged {where}: a member is missing where one should start, so some may be lost"
        yield Quarantined(path=tar, reason=reason, rows=0)
    archive.damaged = False


def _read_member(archive: _Archive, header: tarfile.TarInfo, name: str, tar: str) -> Member | Quarantined | LeftOut:
    where = f"{tar}: {name}"
    rule = rule_by_name(name)
    if not rule and not (header.isfile() or header.issym() or header.islnk()):
        rule = "not a regular file but a pipe or device"
    if rule:
        return LeftOut(path=where, rule=rule)
    try:
        content = archive.extractfile(header)
        assert content is not None  # None is for folders and devices
        is_label = posixpath.splitext(name)[1].lower() in LABEL_SUFFIXES
        return Member(name, content.read() if is_label else read_image(content, name))
    except (KeyError, RecursionError, tarfile.StreamError):
        target = printable(header.linkname)
        reason = f"link to {target!r}, which is not in the tar or is out of reach in a compressed tar; store the file"
    except DAMAGE as error:
        reason = f"cut short or damaged: {first_line(error)}"
    if has_image_suffix(name) or header.issym() or header.islnk():
        return Quarantined(path=where, reason=reason)
    return LeftOut(path=where, rule=f"not an image by its name, and {reason}")
