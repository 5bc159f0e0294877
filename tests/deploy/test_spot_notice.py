"""deploy/spot_notice.sh against a metadata service of our own: Ray is told once AWS has announced the machine's end."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.fixture
def raylets() -> Iterator[None]:
    """Two processes with the flags of a raylet: one of this machine's address, 192.0.2.77, and one of another's."""
    nodes = {"10.0.0.9": "0ther", "192.0.2.77": "0wn"}
    script = [sys.executable, "-c", "import time; time.sleep(100)"]
    flags = [[f"--node_ip_address={address}", "--port=1", f"--node_id={node}"] for address, node in nodes.items()]
    started = [subprocess.Popen([*script, *mine]) for mine in flags]
    yield
    for process in started:
        process.kill()
        process.wait()


def start(folder: Path, metadata: str) -> subprocess.Popen[str]:
    """Start the script; its `ray` writes its arguments to the file `told`."""
    commands = {
        "ray": f'echo "$@" > {folder / "told"}',
        "sleep": "exec /bin/sleep 0.1",
        "hostname": "echo 2001:db8::1 192.0.2.77",
    }
    for name, command in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{command}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata}
    command = ["sh", str(SCRIPT), "10.0.0.1:6379"]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_no_raylet_on_the_machine_is_an_error(metadata: str, tmp_path: Path) -> None:
    Metadata.announced.set()
    watch = start(tmp_path, metadata)
    _, errors = watch.communicate(timeout=60)
    assert watch.returncode == 1
    assert "no raylet of Ray with an address of this machine (2001:db8::1 192.0.2.77)" in errors


@pytest.mark.usefixtures("raylets")
def test_the_machines_own_node_is_drained_after_the_notice_and_not_before(metadata: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    watch = start(tmp_path, metadata)
    try:
        time.sleep(1)
        assert watch.poll() is None
        assert not told.exists()
        Metadata.announced.set()
        assert watch.wait(60) == 0
    finally:
        watch.kill()
    expected = "drain-node --address 10.0.0.1:6379 --node-id 0wn --reason DRAIN_NODE_REASON_PREEMPTION"
    assert told.read_text() == f"{expected} --reason-message spot notice --deadline-remaining-seconds 110\n"
