"""What the tests of the records share."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NoReturn

from mlflow import MlflowClient

from pipeline.config.models import DataConfig, OptimConfig, RunConfig, TrackingConfig
from pipeline.tracking import RunRef

NOBODY = "http://127.0.0.1:9"  # the discard port: connections are refused at once


def config(storage: Path | str, uri: str | None = None, **tracking: Any) -> RunConfig:
    return RunConfig(
        storage=str(storage),
        data=DataConfig(path="shards"),
        optim=OptimConfig(lr=0.1),
        tracking=TrackingConfig(uri=uri, **tracking),
    )


def client(ref: RunRef) -> MlflowClient:
    return MlflowClient(ref.uri)


def history(ref: RunRef, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client(ref).get_metric_history(ref.run_id, key)]


def files(ref: RunRef, folder: str | None = None) -> list[str]:
    return [item.path for item in client(ref).list_artifacts(ref.run_id, folder)]


def status(ref: RunRef) -> str:
    return str(client(ref).get_run(ref.run_id).info.status)


def unreachable(*_: object, **__: object) -> NoReturn:
    raise ConnectionError("gone")


def on_disk(spool: Path) -> list[list[object]]:
    return [json.loads(line) for line in spool.read_text().splitlines() if line]


@contextmanager
def server_that_answers(code: int, body: str) -> Iterator[str]:
    """The address of a server that gives every request the same answer."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether a condition comes true in time."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()
