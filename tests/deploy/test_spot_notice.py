"""deploy/spot_notice.sh against a metadata service of our own: Ray is told once AWS has announced the machine's end."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/spot_notice.sh"


class Metadata(BaseHTTPRequestHandler):
    """IMDSv2: a token by PUT, without which nothing is told; the notice is 404 until there is one."""

    announced = threading.Event()

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._answer(200 if known else 400, b"secret")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "secret":
            return self._answer(401)
        ends = self.path == "/latest/meta-data/spot/instance-action" and self.announced.is_set()
        self._answer(200 if ends else 404, b'{"action": "terminate", "time": "2026-01-01T00:02:00Z"}')

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def metadata() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    Metadata.announced.clear()


def test_the_node_is_drained_after_the_notice_and_not_before(metadata: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    (tmp_path / "ray").write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    (tmp_path / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.1\n")
    for name in ("ray", "sleep"):
        (tmp_path / name).chmod(0o755)
    watch = subprocess.Popen(
        ["sh", str(SCRIPT), "10.0.0.1:6379"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata},
        stdout=subprocess.DEVNULL,
    )
    try:
        time.sleep(1)
        assert watch.poll() is None
        assert not told.exists()
        Metadata.announced.set()
        assert watch.wait(60) == 0
    finally:
        watch.kill()
    expected = "drain-node --address 10.0.0.1:6379 --reason DRAIN_NODE_REASON_PREEMPTION"
    assert told.read_text() == f"{expected} --reason-message spot notice --deadline-remaining-seconds 110\n"
