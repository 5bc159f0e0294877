"""An S3 server of our own that can be slow, throttle, or refuse a token, as a real one does at its worst."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import boto3
import pytest
import ray
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "digpro"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
Fault = Callable[[str, str], tuple[str, str, str] | None]
"""Takes the method and path of a request; gives status, code and message of a refusal, or None for the answer."""


def throttle(method: str, path: str) -> tuple[str, str, str]:
    """Refuse every request, as S3 does when there are too many."""
    return "503 Slow Down", "SlowDown", "Please reduce your request rate."


def expire(method: str, path: str) -> tuple[str, str, str]:
    """Refuse every request, as S3 does when a temporary token has expired."""
    return "400 Bad Request", "ExpiredToken", "The provided token has expired."


class S3Server(AbstractContextManager["S3Server"]):
    """moto's server with an empty bucket, and a fault that can be set and taken away at any time."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        self.fault: Fault | None = None
        self.requests = 0
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.endpoint = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> S3Server:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.client().create_bucket(Bucket=BUCKET)
        return self

    def __exit__(self, *_: object) -> None:
        self.fault = None
        self._server.shutdown()

    def client(self) -> Any:
        """A client that looks into the server past the code under test."""
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        return boto3.client("s3", endpoint_url=f"http://{self.endpoint}", region_name="us-east-1", **keys)

    def objects(self, prefix: str = "") -> set[str]:
        """Keys of the objects in the bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {item["Key"] for page in pages for item in page.get("Contents", [])}

    def empty(self) -> None:
        """Delete all objects of the bucket."""
        for key in self.objects():
            self.client().delete_object(Bucket=BUCKET, Key=key)

    def uri(self, path: str = "") -> str:
        """A URI as users of MinIO, Ceph or R2 write it."""
        return f"s3://{BUCKET}{path}?endpoint_override={self.endpoint}&scheme=http&region=us-east-1"

    def set_environment(self, patch: pytest.MonkeyPatch) -> None:
        """Keys and server, for URIs without a query."""
        environment = KEYS | {"AWS_ENDPOINT_URL": f"http://{self.endpoint}", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in environment.items():
            patch.setenv(name, value)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests += 1
        refusal = self.fault(environ["REQUEST_METHOD"], environ["PATH_INFO"]) if self.fault else None
        if refusal is None:
            return self._moto(environ, start_response)  # type: ignore[no-any-return]
        status, code, message = refusal
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


def silent_for(seconds: float, then: Fault | None = None) -> Fault:
    """Hold every request until so many seconds have passed since the first; then do the other thing."""
    began: list[float] = []

    def wait(method: str, path: str) -> tuple[str, str, str] | None:
        began.append(time.monotonic())
        time.sleep(max(0.0, began[0] + seconds - time.monotonic()))
        return then(method, path) if then else None

    return wait


def for_seconds(seconds: float, fault: Fault) -> Fault:
    """The fault, until so many seconds have passed since the first request."""
    began: list[float] = []

    def answer(method: str, path: str) -> tuple[str, str, str] | None:
        began.append(time.monotonic())
        return fault(method, path) if began[-1] < began[0] + seconds else None

    return answer


@contextmanager
def ray_with_s3() -> Iterator[S3Server]:
    """A server whose keys are there before Ray starts, so that every process knows them; Ray ends with it."""
    with pytest.MonkeyPatch.context() as patch, S3Server() as server:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        yield server
        ray.shutdown()
