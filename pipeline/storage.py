"""Local folders and filesystem URIs as one thing: where they are, reading them, and writing whole files."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.errors import ConfigError, DataError


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a local path or pyarrow URI (``s3://``, ``gs://``, ``file://`` ...), and the path in it.

    Local paths come back absolute, because Ray workers run in other folders than the driver.

    Raises
    ------
    DataError
        For an empty path, or a URI that pyarrow cannot use.
    """
    if not path:
        raise DataError("the path is empty; give a folder, a file or a URI")
    if "://" not in path:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    try:
        fs, inner = pafs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, OSError) as error:
        remedy = "give a local path or a URI such as s3://bucket/folder"
        raise DataError(f"{path} is not a usable filesystem URI ({error}); {remedy}") from error
    return fs, inner.rstrip("/")


def absolute(path: str) -> str:
    """A path that means the same in every process: URIs as they are, local ones from the root."""
    return path if "://" in path else filesystem(path)[1]


def write_atomically(fs: pafs.FileSystem, path: str, data: bytes) -> None:
    """Write `data` under a temporary name and move it to `path`, so that a kill leaves the old file or the new."""
    temporary = f"{path}.tmp"
    with fs.open_output_stream(temporary) as stream:
        stream.write(data)
    fs.move(temporary, path)


def check_writable(path: str) -> None:
    """Write and remove a probe below `path`; ConfigError with the reason when that fails."""
    try:
        files, root = filesystem(path)
        files.create_dir(root, recursive=True)
        probe = f"{root}/.probe-{uuid.uuid4().hex}"
        with files.open_output_stream(probe) as stream:
            stream.write(b"digpro")
        files.delete_file(probe)
    except OSError as error:
        raise ConfigError(
            f"storage={path!r} cannot be written ({error}); set storage to a folder or URI that can"
        ) from None


class Folder:
    """A folder with JSON files in it, local or remote.

    Parameters
    ----------
    path : str
        Absolute local path, or URI; it need not exist yet.

    Attributes
    ----------
    name : str
        Last part of the path.
    parent_root : str
        Path of the folder above it, within `files`.
    root : str
        Its path within `files`.
    """

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")
        parent, _, self.name = self.path.rpartition("/")
        self.files, self.parent_root = filesystem(parent)
        self.root = f"{self.parent_root}/{self.name}"

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
        return Folder(f"{self.path}/{name}")

    def names(self, prefix: str = "") -> list[str]:
        """Names of the files and folders in it that begin with `prefix`, sorted; none where it does not exist."""
        found = self.files.get_file_info(pafs.FileSelector(self.root, allow_not_found=True))
        return sorted(info.base_name for info in found if info.base_name.startswith(prefix))

    def read(self, file: str) -> dict[str, Any] | None:
        """Values of a JSON file; None when there is none.

        Raises
        ------
        ConfigError
            When the file is damaged.
        """
        try:
            with self.files.open_input_file(f"{self.root}/{file}") as stream:
                return dict(json.loads(stream.read()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            remedy = "start the run again under another name"
            raise ConfigError(f"{self.path}/{file} is damaged ({error}); {remedy}") from None

    def write(self, file: str, values: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_bytes(file, json.dumps(values, indent=1).encode())

    def write_bytes(self, file: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        write_atomically(self.files, f"{self.root}/{file}", data)

    def update(self, file: str, **values: Any) -> None:
        """Set values of a JSON file."""
        self.write(file, (self.read(file) or {}) | values)

    def delete(self, file: str) -> None:
        """Delete a file; nothing happens when there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.files.delete_file(f"{self.root}/{file}")

    def open_output(self, file: str) -> Any:
        """A binary stream into a file of the folder."""
        return self.files.open_output_stream(f"{self.root}/{file}")
