"""What is wrong with a store: unreachable for now, which the spool bridges, or unusable, which the user must fix."""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from shlex import quote
from tempfile import TemporaryFile

from pipeline.errors import ConfigError, first_line
from pipeline.ray_private import mlflow_migrations
from pipeline.tracking.store import creation_lock, database_path, local_path, redacted

WAY_OUT = "or train without records (--set tracking.enabled=false)"

# Errors of the drivers of SQLite, PostgreSQL, MySQL and SQL Server for a database that may answer later.
_BUSY_DATABASE = re.compile(
    r"is locked|refused|timed? ?out|unreachable|can't connect|could not (connect|translate)|gone away|reset by peer|"
    r"closed|lost connection|starting up|shutting down|too many|name resolution|deadlock",
    re.IGNORECASE,
)
# Pattern in an error's message -> what to do about it.
_REMEDIES = {
    r"Invalid Host header|DNS rebinding": "start the server with this name in --allowed-hosts (by default MLflow "
    "permits only loopback and private addresses)",
    r"out-of-date database schema|Can't locate revision": "back up the database and run `mlflow db upgrade {uri}`, or "
    "upgrade mlflow here if the database is newer",
    r"code 40[13]|UNAUTHENTICATED|PERMISSION_DENIED|Unauthorized": "check the user and the password "
    "(MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD) and this user's permissions on the server",
    r"No module named": "install the Python driver of the database",
    r"SSL|certificate": "trust the server's certificate (MLFLOW_TRACKING_SERVER_CERT_PATH)",
    r"code 404|ENDPOINT_NOT_FOUND|valid JSON": "give the address of an MLflow server in tracking.uri, with its "
    "--static-prefix if it has one",
}


def summary_of(error: BaseException) -> str:
    """One short line about an error, without the password that a URI in it may carry."""
    return redacted(f"{type(error).__name__}: {first_line(error)}")[:300]


def is_unreachable(error: BaseException) -> bool:
    """Whether a store may answer later: refused connection, timeout, a server's 5xx, or a locked database.

    False for a store that answered and will give the same answer again.
    """
    from mlflow.exceptions import MlflowException, RestException
    from requests import exceptions as http
    from sqlalchemy.exc import SQLAlchemyError

    for cause in _chain(error):
        if isinstance(cause, http.RequestException):
            passing = (http.ConnectionError, http.Timeout, http.RetryError, http.ChunkedEncodingError)
            return isinstance(cause, passing) and not isinstance(cause, http.SSLError)
        if isinstance(cause, (SQLAlchemyError, sqlite3.Error)):
            return _BUSY_DATABASE.search(str(cause)) is not None
        if isinstance(cause, (ConnectionError, TimeoutError)) or _is_lost_bucket(cause):
            return True
    if isinstance(error, RestException):
        return int(error.get_http_status_code()) >= 500
    status = re.search(r"failed with error code (\d+)", str(error)) if isinstance(error, MlflowException) else None
    return status is not None and int(status[1]) >= 500


def _is_lost_bucket(error: BaseException) -> bool:
    """Whether it is botocore's error for an endpoint that does not answer; botocore need not be installed."""
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    return "botocore.exceptions.HTTPClientError" in names


def refusal(error: BaseException, uri: str) -> ConfigError:
    """The error for a store that answered but cannot be used: what is wrong, what to do, and the way out."""
    text = str(error)
    found = (remedy for pattern, remedy in _REMEDIES.items() if re.search(pattern, text))
    remedy = next(found, "correct this at the store, give another store in tracking.uri").format(
        uri=quote(redacted(uri))
    )
    return ConfigError(f"MLflow at {redacted(uri)} cannot be used: {summary_of(error)}; {remedy}, {WAY_OUT}")


def check_store(uri: str) -> None:
    """ConfigError when `uri` is an SQLite file that MLflow cannot write to; other stores are judged by their answer.

    Nothing is changed in the file. A missing or empty file is a new database, and a file that is locked for the moment
    passes.
    """
    database = database_path(uri)
    if database is None:
        return
    try:
        with creation_lock(uri), closing(sqlite3.connect(database, timeout=5.0)) as connection:
            problem = _problem_of(connection, uri)
    except (sqlite3.Error, OSError) as error:
        if _BUSY_DATABASE.search(str(error)):
            return
        problem = f"{first_line(error)}; {_remedy_of_file(error)}"
    if problem:
        raise ConfigError(f"the MLflow database {database} cannot be used: {problem}, {WAY_OUT}")


def check_artifacts(location: str) -> None:
    """ConfigError when a run's files go to a folder of this machine that cannot be written; the folder is created."""
    folder = local_path(location)
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"the MLflow experiment stores its files in {folder}, which cannot be written ({first_line(error)}); make "
            "it writable, choose another experiment (--set tracking.experiment=...), start the server with "
            f"--artifacts-destination, {WAY_OUT}"
        ) from None


def _problem_of(connection: sqlite3.Connection, uri: str) -> str:
    """What is wrong with an open SQLite database, and the remedy; nothing when MLflow can use it."""
    connection.isolation_level = None  # transactions are begun and ended here, not by the driver
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE digpro_probe (x)")  # the first write fails if the file or its folder is read-only
    connection.execute("ROLLBACK")
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables - {"alembic_version"}:
        return ""
    if not {"alembic_version", "experiments", "runs"} <= tables:
        return f"it belongs to another program (tables: {', '.join(sorted(tables)[:5])}); give another tracking.uri"
    (version,) = connection.execute("SELECT version_num FROM alembic_version").fetchone() or ("none",)
    newest, known = _schema_versions()
    if version == newest:
        return ""
    if version in known:
        return (
            f"its schema is old (version {version}, this MLflow has {newest}); back up the file and run "
            f"`mlflow db upgrade {quote(uri)}`, give another tracking.uri"
        )
    return (
        f"its schema version {version} is unknown to the MLflow installed here, whose newest version is {newest}; "
        "upgrade mlflow here if a newer one wrote the file, give another tracking.uri"
    )


@functools.cache
def _schema_versions() -> tuple[str | None, frozenset[str]]:
    """The newest version of the installed MLflow's schema, and all versions that it can upgrade from."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(mlflow_migrations()))
    return scripts.get_current_head(), frozenset(script.revision for script in scripts.walk_revisions())


def _remedy_of_file(error: Exception) -> str:
    if re.search(r"not a database|malformed", str(error)):
        return "restore it from a backup or move it away, give another tracking.uri"
    return "make the file and its folder writable for this user, give another tracking.uri"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
