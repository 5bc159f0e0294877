"""Which Ray cluster a command finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster import connect
from pipeline.errors import ConfigError


def test_a_dashboard_is_no_cluster_to_connect_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=http://127\.0\.0\.1:8265 is a dashboard.*`digpro submit`"):
        connect()


@pytest.mark.slow
def test_an_address_without_a_cluster_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "doctor"]
    wrong = os.environ | {"RAY_ADDRESS": "auto", "RAY_TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=wrong, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "no Ray cluster answers at RAY_ADDRESS=auto" in done.stderr
