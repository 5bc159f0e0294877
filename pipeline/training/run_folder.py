"""The folder of one run: who it is, and what it left."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem

from pipeline.config.identity import result_settings
from pipeline.config.loading import parse_config
from pipeline.config.models import RunConfig
from pipeline.data.shards import MANIFEST, read_manifest
from pipeline.errors import ConfigError
from pipeline.storage import filesystem, write_atomically

IDENTITY, SUMMARY = "run.json", "summary.json"


class RunFolder:
    """`storage`/`name` on any filesystem.

    Attributes
    ----------
    path : str
        Absolute local path, or URI.
    """

    def __init__(self, storage: str, name: str) -> None:
        self.name, self.path = name, f"{storage}/{name}"
        self.files, self.storage_root = filesystem(storage)
        self.root = f"{self.storage_root}/{name}"

    @property
    def spool(self) -> Path:
        """Where MLflow's points wait: in the folder, or on this machine when the folder is no local one."""
        local = isinstance(self.files, LocalFileSystem)
        return Path(self.root if local else Path(tempfile.gettempdir(), "digpro", self.name), "mlflow-spool.jsonl")

    @classmethod
    def at(cls, path: str) -> RunFolder:
        """The folder at an absolute local path or URI, whether it is there or not."""
        storage, _, name = path.rstrip("/").rpartition("/")
        return cls(storage, name)

    def make(self) -> RunFolder:
        """Create the folder where there is none."""
        self.files.create_dir(self.root, recursive=True)
        return self

    @classmethod
    def claim(cls, config: RunConfig) -> RunFolder:
        """The folder of a named configuration, new or of the same run.

        Raises
        ------
        ConfigError
            When a run with other settings, or on other images, already has the name; the message lists what differs.
        """
        assert config.name is not None
        folder = cls.at(f"{config.storage}/{config.name}").make()
        identity = folder.read(IDENTITY)
        if identity is not None and "manifest" in identity:  # without one it failed its checks and never started
            changed = _changed_settings(folder, identity, config) + _changed_images(identity, config)
            if changed:
                raise ConfigError(
                    f"run {config.name!r} in {config.storage} was started with other settings: {'; '.join(changed)}. "
                    "Give another name (--set name=...), or the settings it had"
                )
        folder.update(IDENTITY, config=config.model_dump(mode="json"))
        return folder

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
        write_atomically(self.files, f"{self.root}/{file}", json.dumps(values, indent=1).encode())

    def open_output(self, file: str) -> Any:
        """A binary stream into a file of the folder."""
        return self.files.open_output_stream(f"{self.root}/{file}")

    def update(self, file: str, **values: Any) -> None:
        """Set values of a JSON file."""
        self.write(file, (self.read(file) or {}) | values)


def _changed_settings(folder: RunFolder, identity: dict[str, Any], config: RunConfig) -> list[str]:
    """What differs between the settings that a run was started with and those of now."""
    before = result_settings(parse_config(identity["config"], f"{folder.path}/{IDENTITY}"))
    return [
        f"{key} was {before[key]}, is {value}" for key, value in result_settings(config).items() if before[key] != value
    ]


def _changed_images(identity: dict[str, Any], config: RunConfig) -> list[str]:
    """How the images differ: by the source's digest, so that a data folder may move."""
    files, root = filesystem(config.data.path)
    if files.get_file_info(f"{root}/{MANIFEST}").is_file:
        before, now = identity["manifest"]["source"], read_manifest(config.data.path).source
        same = before["digest"] == now.digest
        return (
            [] if same else [f"the images came from {before['source']}, those of {config.data.path} from {now.source}"]
        )
    source, wanted = identity["config"]["data"]["source"], config.data.source
    return [] if source == wanted else [f"data.source was {source}, is {wanted}"]
