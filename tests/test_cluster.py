"""Which Ray cluster a command finds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import cluster
from pipeline.cluster import DASHBOARD, cluster_address, connect, own_cluster, unset_empty_variables
from pipeline.errors import ConfigError


def free_port() -> int:
    """A port of this machine at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_dashboard_is_not_a_cluster_to_connect_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=http://127\.0\.0\.1:8265 is a dashboard.*`digpro submit`"):
        connect()


@pytest.mark.parametrize("address", ["foo", "host:abc", "host:99999", "10.0.0.1:", ":6379", "tcp://a:1", "a b:1"])
def test_what_is_not_an_address_is_named(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=rf"RAY_ADDRESS={address} is not an address; give host:port"):
        connect()


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"{prefix}127.0.0.1:{free_port()}")
    start = time.monotonic()
    with pytest.raises(ConfigError, match=rf"no Ray cluster answers at RAY_ADDRESS={prefix}127"):
        connect()
    assert time.monotonic() - start < 10


def test_an_address_that_accepts_and_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ConfigError, match="no Ray cluster answers"):
            connect()
    assert cluster.ANSWER_SECONDS < 15


def test_a_cluster_that_is_gone_is_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`ray start` leaves its address behind; Ray would try to reach it for ever."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=auto finds no Ray cluster.* recorded, does not answer"):
        cluster_address()


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"):
        monkeypatch.setenv(name, "")
    unset_empty_variables()
    assert "RAY_ADDRESS" not in os.environ
    assert "RAY_TMPDIR" not in os.environ
    assert "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S" not in os.environ


def test_a_machine_that_cannot_run_ray_is_refused_before_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("")
    script = "import sys; sys.path.remove(''); from pipeline.cluster import connect; connect()"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert f"workers would import {tmp_path}/queue.py in place of the library 'queue'; rename it" in done.stderr


@pytest.mark.slow
def test_an_address_without_a_cluster_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "doctor"]
    wrong = os.environ | {"RAY_ADDRESS": "auto", "RAY_TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=wrong, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "RAY_ADDRESS=auto finds no Ray cluster on this machine: none was started here" in done.stderr


@pytest.mark.parametrize("before", [None, "http://elsewhere:8265"])
def test_a_cluster_of_our_own_knows_its_dashboard(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other clusters on the machine, Ray Train could not free the places of a trial that was stopped."""
    monkeypatch.delenv(DASHBOARD, raising=False)
    if before:
        monkeypatch.setenv(DASHBOARD, before)
    with own_cluster() as options:
        assert os.environ[DASHBOARD] == f"http://127.0.0.1:{options['dashboard_port']}"
    assert os.environ.get(DASHBOARD) == before
