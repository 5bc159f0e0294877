"""Where the records go: the URI of the MLflow store, and a client for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow.fs as pafs

from pipeline.errors import ConfigError
from pipeline.ray_private import try_databases_once
from pipeline.storage import filesystem, redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT = "MLFLOW_TRACKING_URI"

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_EXAMPLES = "give a server (http://host:port) or a database (sqlite:////folder/mlflow.db)"


def tracking_uri(uri: str | None, storage_dir: str) -> str:
    """The URI of the store, valid in every process: a relative SQLite path becomes absolute.

    Without `uri` it is MLFLOW_TRACKING_URI, as everywhere in MLflow, or else the file ``mlflow.db`` in `storage_dir`.

    Raises
    ------
    ConfigError
        A URI that MLflow cannot write to, or no URI and a storage that is not a local folder.
    """
    origin = "tracking.uri"
    if uri is None and (from_environment := os.environ.get(ENVIRONMENT)):
        uri, origin = from_environment, ENVIRONMENT
    if uri is None:
        return sqlite_uri(_folder_for_database(storage_dir) / "mlflow.db")
    scheme, separator, _ = uri.partition("://")
    kind = scheme.split("+")[0]
    if uri != "databricks" and (not separator or kind not in _SCHEMES):
        raise ConfigError(f"{origin} is {redacted(uri)!r}, which is not the URI of an MLflow store; {_EXAMPLES}")
    return sqlite_uri(_absolute_database(uri, origin)) if kind == "sqlite" else uri


def sqlite_uri(database: Path) -> str:
    """The URI of an SQLite file, whatever characters its path has.

    SQLAlchemy percent-quotes and unquotes a path. MLflow uses the text after ``sqlite:///`` as a path without
    unquoting it and would make a folder with the quoted name, unless the URI names the driver too.
    """
    from sqlalchemy import URL

    path = str(database)
    try:
        uri = URL.create("sqlite", database=path).render_as_string()
        return uri if uri == f"sqlite:///{path}" else URL.create("sqlite+pysqlite", database=path).render_as_string()
    except UnicodeEncodeError:
        raise ConfigError(
            f"the path {path!r} is not UTF-8 text, so no URI can name an MLflow database there; rename the folder"
        ) from None


def database_path(uri: str) -> Path | None:
    """The file of an SQLite store; None for every other store."""
    from sqlalchemy import make_url

    return Path(make_url(uri).database or "") if uri.startswith("sqlite") else None


def local_path(uri: str) -> Path | None:
    """The path of a ``file:`` URI or a plain path; None for every other URI."""
    parts = urlsplit(uri)
    if parts.scheme:
        return Path(url2pathname(parts.path)) if parts.scheme == "file" else None
    return Path(uri)


def client_for(uri: str) -> MlflowClient:
    """A client that writes to `uri`; MLflow is imported here, at its first use."""
    from mlflow import MlflowClient

    if not uri.startswith("http"):
        try_databases_once()
    with creation_lock(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def creation_lock(uri: str) -> Iterator[None]:
    """Hold the lock of an SQLite store's folder: two clients that create its tables at the same time damage it."""
    database = database_path(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with locked(database.parent):
        yield


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; it ends with the process. On a file system that has no locks, go without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _folder_for_database(storage_dir: str) -> Path:
    files, root = filesystem(storage_dir)
    if not isinstance(files, pafs.LocalFileSystem):
        raise ConfigError(
            f"storage is {storage_dir!r}, which cannot hold an SQLite file; set tracking.uri to a server "
            "(http://host:port), or train without records (tracking.enabled=false)"
        )
    return Path(root)


def _absolute_database(uri: str, origin: str) -> Path:
    """The file that an SQLite URI names; ConfigError if SQLAlchemy would use a different one than was meant."""
    from sqlalchemy import make_url

    if "?" in uri:
        raise ConfigError(f"{origin} is {uri!r}; write %3F for a question mark in the path, and give no options")
    url = make_url(uri)
    if url.host:
        raise ConfigError(f"{origin} is {uri!r}, which names a host; an absolute path needs four slashes; {_EXAMPLES}")
    if url.database in (None, "", ":memory:"):
        raise ConfigError(f"{origin} is {uri!r}, an in-memory database that ends with its process; {_EXAMPLES}")
    return Path(str(url.database)).absolute()
