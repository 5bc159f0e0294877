"""A folder with files that are written whole; and checks of a place before it is needed."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.errors import ConfigError
from pipeline.storage.faults import remedy_for
from pipeline.storage.filesystems import filesystem
from pipeline.storage.place import Place

FEW_TRIES = 3  # of the first requests to a store: a wrong address is reported within seconds
UNFINISHED = ".unfinished-"  # prefix of a file that is being written; readers of Parquet folders skip a leading dot


@contextlib.contextmanager
def whole_file(fs: pafs.FileSystem, path: str) -> Iterator[str]:
    """A temporary name to write to; at the end the file is moved to `path`. A kill leaves the old file or the new.

    The name is unique: of two writers at the same time, the last one wins with its whole file.
    """
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/{UNFINISHED}{uuid.uuid4().hex}-{name}"
    try:
        yield temporary
        fs.move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError, pa.ArrowException):
            fs.delete_file(temporary)
        raise


def write_atomically(fs: pafs.FileSystem, path: str, data: bytes) -> None:
    """Write a file, whole or not at all."""
    with whole_file(fs, path) as name, fs.open_output_stream(name, compression=None) as stream:
        stream.write(data)


def probe(files: pafs.FileSystem, root: str) -> None:
    """Write a file into a new folder, read it back and remove both: the operations that our folders need."""
    folder = f"{root}/.probe-{uuid.uuid4().hex}"
    files.create_dir(folder, recursive=True)
    write_atomically(files, f"{folder}/probe", b"digpro")
    with files.open_input_file(f"{folder}/probe") as stream:
        if stream.read() != b"digpro":
            raise OSError("the content read back differs from the content written")
    files.delete_dir(folder)


def check_writable(path: str, what: str = "storage") -> None:
    """ConfigError when a place cannot be written and read; `what` names the setting or argument that gave it."""
    files, root = filesystem(path, tries=FEW_TRIES)
    try:
        probe(files, root)
    except (OSError, pa.ArrowException) as error:
        remedy = remedy_for(error, f"set {what} to a writable folder or URI")
        raise ConfigError(f"{what}={path!r} cannot be written ({error}); {remedy}") from None


def check_readable(path: str, what: str) -> None:
    """ConfigError when the store of a place does not answer; nothing need be there yet."""
    files, root = filesystem(path, tries=FEW_TRIES)
    try:
        files.get_file_info(root)
    except (OSError, pa.ArrowException) as error:
        remedy = remedy_for(error, f"set {what} to a readable folder or URI")
        raise ConfigError(f"{what}={path!r} cannot be read ({error}); {remedy}") from None


class Folder:
    """A folder, local or remote, with JSON files and others in it.

    Its filesystem is not contacted before the folder is used.

    Parameters
    ----------
    path : str
        Absolute local path, or URI; it need not exist yet.

    Attributes
    ----------
    path : str
        The same in normal form.
    name : str
        Last part of the path.
    """

    def __init__(self, path: str) -> None:
        self._place = Place.parse(path)
        self.path, self.name = str(self._place), self._place.name

    @cached_property
    def _opened(self) -> tuple[pafs.FileSystem, str]:
        return filesystem(self.path)

    @property
    def files(self) -> pafs.FileSystem:
        """The filesystem it lies in."""
        return self._opened[0]

    @property
    def root(self) -> str:
        """Its path within `files`."""
        return self._opened[1]

    @property
    def parent_root(self) -> str:
        """Path of the folder above it, within `files`."""
        return self.root.rpartition("/")[0]

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine's file system."""
        return isinstance(self.files, pafs.LocalFileSystem)

    def make(self) -> Folder:
        """Create the folder where there is none."""
        self.files.create_dir(self.root, recursive=True)
        return self

    def subfolder(self, name: str) -> Folder:
        """The folder of this name in it."""
        return Folder(self.file(name))

    def file(self, name: str) -> str:
        """Path or URI of the file or folder of this name in it, for messages and for other processes."""
        return str(self._place / name)

    def names(self, prefix: str = "") -> list[str]:
        """Names of the files and folders in it that begin with `prefix`, sorted; none where it does not exist.

        Files that are being written are not among them.
        """
        names = self._all_names()
        return sorted(name for name in names if name.startswith(prefix) and not name.startswith(UNFINISHED))

    def delete_unfinished(self) -> None:
        """Delete the files that killed writers left; only for a command that is alone in the folder."""
        for name in self._all_names():
            if name.startswith(UNFINISHED):
                self.delete(name)

    def _all_names(self) -> list[str]:
        found = self.files.get_file_info(pafs.FileSelector(self.root, allow_not_found=True))
        return [info.base_name for info in found]

    def read(self, file: str) -> dict[str, Any] | None:
        """Values of a JSON file; None when there is none.

        Raises
        ------
        ConfigError
            When the file is damaged.
        """
        try:
            return dict(json.loads(self.read_bytes(file)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            remedy = "start the run again under another name"
            raise ConfigError(f"{self.file(file)} is damaged ({error}); {remedy}") from None

    def write(self, file: str, values: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_bytes(file, json.dumps(values, indent=1).encode())

    def write_bytes(self, file: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        write_atomically(self.files, f"{self.root}/{file}", data)

    def put(self, file: Path) -> None:
        """Copy a local file into it under the same name, whole or not at all."""
        with file.open("rb") as source, self.open_output(file.name) as target:
            shutil.copyfileobj(source, target)

    def read_bytes(self, file: str) -> bytes:
        """Content of an existing file."""
        with self.files.open_input_file(f"{self.root}/{file}") as stream:
            return bytes(stream.read())

    def update(self, file: str, **values: Any) -> None:
        """Set values of a JSON file."""
        self.write(file, (self.read(file) or {}) | values)

    def delete(self, file: str) -> None:
        """Delete a file; nothing happens when there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.files.delete_file(f"{self.root}/{file}")

    @contextlib.contextmanager
    def open_output(self, file: str) -> Iterator[Any]:
        """A binary stream into a file of the folder, which appears whole when the stream is closed."""
        with (
            whole_file(self.files, f"{self.root}/{file}") as name,
            self.files.open_output_stream(name, compression=None) as stream,
        ):
            yield stream
