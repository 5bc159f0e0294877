"""A logged model answers over HTTP as `digpro assign` does."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
import torch
from PIL import Image

from pipeline.data.decode import decode
from pipeline.serving.mlflow_model import save_mlflow_model
from tests.helpers.models import card, cluster_model
from tests.helpers.pictures import quadrants, saved

START_SECONDS = 120


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("http")
    save_mlflow_model(folder / "model", cluster_model(), card())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder / "model"), "--env-manager", "local"]
    log = (folder / "log").open("wb")
    activated = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # MLflow calls uvicorn
    server = subprocess.Popen(
        [*command, "-h", "127.0.0.1", "-p", port, "-w", "1"], stdout=log, stderr=log, env=activated, cwd=folder
    )
    try:
        _wait(f"http://127.0.0.1:{port}/ping", server, folder / "log")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        if server.poll() is None:
            for process in [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]:
                process.terminate()
            server.wait(20)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if requests.get(url, timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    pytest.fail(f"no server: {log.read_text()[-2000:]}")


@pytest.mark.slow
def test_an_image_is_answered_with_its_cluster(address: str) -> None:
    picture = saved(Image.fromarray(quadrants()), "JPEG", quality=95)
    text = base64.b64encode(picture).decode()
    with torch.inference_mode():
        expected = cluster_model()(decode(picture, **card().decoding).permute(1, 2, 0)[None])[0][0]
    for body in ({"dataframe_records": [{"image": text}]}, {"inputs": [text]}):
        answer = requests.post(address, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()["predictions"]
        assert row["cluster"] == int(expected.argmax())
        assert row["similarity"] == pytest.approx(float(expected.max()), abs=1e-5)
    refused = requests.post(address, json={"inputs": ["no image"]}, timeout=60)
    assert refused.status_code == 400
    assert "image 0: text that is not base64" in refused.json()["message"]
