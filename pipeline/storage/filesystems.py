"""The filesystem of a place: pyarrow's, with more retries for S3."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.errors import DataError
from pipeline.storage.place import Place

TRIES = 10
"""Tries of a request to S3 that is throttled, fails or is not answered. With random waits of up to 1, 2, 4, 8, 16 and
then 20 seconds, and 3 seconds for an answer, they take a minute or two."""
TRIES_VARIABLE = "AWS_MAX_ATTEMPTS"  # the name that other programs use
FLAGS = ("allow_bucket_creation", "allow_bucket_deletion", "force_virtual_addressing")
TEXTS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the first one that is set counts


def filesystem(path: str, *, tries: int | None = None) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a local path or URI (``s3://``, ``gs://``, ``file://`` ...), and the path in it.

    Local paths come back absolute, because Ray workers run in other folders than the driver.

    Parameters
    ----------
    tries : int, optional
        Of each request to S3; AWS_MAX_ATTEMPTS, or else `TRIES`, when absent.

    Raises
    ------
    DataError
        For an empty path, or a URI that cannot be used.
    """
    place = Place.parse(path)
    if not place.scheme:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    try:
        if place.scheme == "s3":
            return _s3(place, tries or int(os.environ.get(TRIES_VARIABLE, TRIES))), place.path
        fs, inner = pafs.FileSystem.from_uri(str(place))
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        remedy = "give a local path or a URI such as s3://bucket/folder"
        raise DataError(f"{path} is not a usable filesystem URI ({error}); {remedy}") from error
    return fs, inner.rstrip("/")


class S3(pafs.S3FileSystem):
    """S3 with retries, pickled as its settings.

    pyarrow's own class would lose the number of tries when it is pickled.
    """

    def __init__(self, tries: int, settings: dict[str, Any]) -> None:
        super().__init__(**settings, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=tries))
        self.arguments = (tries, settings)

    def __reduce__(self) -> tuple[Any, ...]:
        return S3, self.arguments


def _s3(place: Place, tries: int) -> S3:
    bucket = place.path.partition("/")[0]
    if not bucket:
        raise ValueError("it names no bucket")
    environment = frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return _connection(bucket, place.options, tries, environment)


@lru_cache(16)
def _connection(bucket: str, options: str, tries: int, environment: frozenset[tuple[str, str]]) -> S3:
    """A cached client, which keeps its connections and credentials; a changed environment gets a new client."""
    values = Place("s3", bucket, options).values
    if unknown := values.keys() - {*FLAGS, *TEXTS}:
        raise ValueError(f"unknown option {min(unknown)!r}; known: {', '.join(sorted((*FLAGS, *TEXTS)))}")
    settings: dict[str, Any] = {name: value for name, value in values.items() if name in TEXTS}
    settings |= {name: values[name].lower() in ("1", "true") for name in FLAGS if name in values}
    if endpoint := next((found for name in ENDPOINTS if (found := dict(environment).get(name))), None):
        settings.setdefault("endpoint_override", endpoint)
    if "region" not in settings and "endpoint_override" not in settings:
        settings["region"] = pafs.resolve_s3_region(bucket)
    return S3(tries, settings)
