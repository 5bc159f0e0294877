"""The folder of one run: who it is, and what it left."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem

from pipeline.config import ConfigError, RunConfig, fingerprint
from pipeline.data.shards import filesystem, write_atomically
from pipeline.tracking import flatten

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
        """The folder at an absolute local path or URI, made when it is not there."""
        storage, _, name = path.rstrip("/").rpartition("/")
        folder = cls(storage, name)
        folder.files.create_dir(folder.root, recursive=True)
        return folder

    @classmethod
    def claim(cls, config: RunConfig) -> RunFolder:
        """The folder of a named configuration, new or of the same run.

        Raises
        ------
        ConfigError
            When another configuration already uses the name; the message lists what differs.
        """
        assert config.name is not None
        folder = cls.at(f"{config.storage}/{config.name}")
        identity = folder.read(IDENTITY)
        if identity is None:
            folder.write(IDENTITY, {"fingerprint": fingerprint(config), "config": config.model_dump(mode="json")})
        elif identity["fingerprint"] != fingerprint(config):
            before, now = flatten(RunConfig.model_validate(identity["config"])), flatten(config)
            changed = [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
            raise ConfigError(
                f"run {config.name!r} in {config.storage} was started with other settings: {'; '.join(changed)}. "
                "Give another name, or the settings it had"
            )
        return folder

    def read(self, file: str) -> dict[str, Any] | None:
        """Values of a JSON file; None when there is none."""
        try:
            with self.files.open_input_file(f"{self.root}/{file}") as stream:
                return dict(json.loads(stream.read()))
        except FileNotFoundError:
            return None

    def write(self, file: str, values: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        write_atomically(self.files, f"{self.root}/{file}", json.dumps(values, indent=1).encode())

    def open_output(self, file: str) -> Any:
        """A binary stream into a file of the folder."""
        return self.files.open_output_stream(f"{self.root}/{file}")

    def update(self, file: str, **values: Any) -> None:
        """Set values of a JSON file."""
        self.write(file, (self.read(file) or {}) | values)
