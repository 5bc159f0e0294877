"""A job is submitted to three nodes with separate addresses, and the power of one node is cut during the run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.namespaces import DASHBOARD_PORT, GCS_PORT, NETWORK, NamespaceCluster
from tests.helpers.runs import options, outcome, settings, train_workers

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and `ip`"),
]


@pytest.fixture
def cluster() -> Iterator[NamespaceCluster]:
    with NamespaceCluster(3) as started:
        yield started


def submit(cluster: NamespaceCluster, folder: Path, name: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Submit a training job; returns its process and its log file."""
    mine = ["optim.epochs=6", "resources.workers=2", "resources.cpus_per_worker=1"]
    address = ["--address", f"http://127.0.0.1:{DASHBOARD_PORT}", "--working-dir", str(ROOT)]
    arguments = options(settings(folder, f"name={name}", *mine))
    log = folder / f"{name}.log"
    return cluster.start_on(0, "digpro", "submit", *address, "train", *arguments, log=log, cwd=ROOT), log


def wait_for_success(job: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until a job has succeeded; returns its log."""
    status = job.wait(400)
    text = log.read_text()
    assert status == 0, text
    return text


def test_a_submitted_job_survives_the_loss_of_a_node_with_the_same_result(
    cluster: NamespaceCluster, tmp_path: Path
) -> None:
    command = ["env", f"RAY_ADDRESS={NETWORK}.1:{GCS_PORT}", "digpro", "doctor", *options(settings(tmp_path))]
    doctor = cluster.run_on(0, *command, capture_output=True, cwd=ROOT, timeout=200)
    for number in (1, 2, 3):
        assert f"ok    storage from {NETWORK}.{number}: read and written" in doctor.stdout, doctor.stdout
    wait_for_success(*submit(cluster, tmp_path, "uninterrupted"))

    job, log = submit(cluster, tmp_path, "interrupted")
    checkpoints = tmp_path / "runs" / "interrupted"
    while len(list(checkpoints.glob("checkpoint_2*"))) < 2:
        assert job.poll() is None, log.read_text()
        time.sleep(0.05)
    time.sleep(0.5)
    victim = next(number for number in (1, 2) if train_workers(cluster.processes(number)))
    cluster.cut_power(victim)
    text = wait_for_success(job, log)
    assert re.search(r"resumed after epoch \d, step \d+, on 2 workers", text), text
    assert outcome(checkpoints) == outcome(tmp_path / "runs" / "uninterrupted")


def test_a_spot_notice_drains_the_node_on_which_it_comes(cluster: NamespaceCluster, tmp_path: Path) -> None:
    """deploy/spot_notice.sh with a metadata service that announces the end at once."""
    curl = tmp_path / "curl"
    curl.write_text("#!/bin/sh\necho token\n")
    curl.chmod(0o755)
    path = f"PATH={tmp_path}:{cluster.environment['PATH']}"
    script = ["sh", str(ROOT / "deploy/spot_notice.sh"), f"{NETWORK}.1:{GCS_PORT}"]
    done = cluster.run_on(1, "env", path, *script, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    deadline = time.monotonic() + 120
    while cluster.alive_nodes() != [f"{NETWORK}.1", f"{NETWORK}.3"]:
        assert time.monotonic() < deadline, cluster.alive_nodes()
        time.sleep(1)
