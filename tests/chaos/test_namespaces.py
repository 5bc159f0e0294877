"""The main job over three nodes with separate addresses, submitted, and one node's power cut in mid-run."""

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
    with NamespaceCluster(3) as made:
        yield made


def submitted(cluster: NamespaceCluster, folder: Path, name: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A job of the whole pipeline, and the file that its log goes to."""
    mine = ["optim.epochs=6", "resources.workers=2", "resources.cpus_per_worker=1"]
    address = ["--address", f"http://127.0.0.1:{DASHBOARD_PORT}", "--working-dir", str(ROOT)]
    arguments = options(settings(folder, f"name={name}", *mine))
    log = folder / f"{name}.log"
    return cluster.begin(0, "digpro", "submit", *address, "train", *arguments, log=log, cwd=ROOT), log


def finished(job: subprocess.Popen[bytes], log: Path) -> str:
    """The log of a job that succeeded."""
    status = job.wait(400)
    text = log.read_text()
    assert status == 0, text
    return text


def test_a_submitted_job_survives_the_loss_of_a_node_with_the_same_result(
    cluster: NamespaceCluster, tmp_path: Path
) -> None:
    asked = ["env", f"RAY_ADDRESS={NETWORK}.1:{GCS_PORT}", "digpro", "doctor", *options(settings(tmp_path))]
    doctor = cluster.inside(0, *asked, capture_output=True, cwd=ROOT, timeout=200)
    for number in (1, 2, 3):
        assert f"ok    storage from {NETWORK}.{number}: read and written" in doctor.stdout, doctor.stdout
    finished(*submitted(cluster, tmp_path, "whole"))

    job, log = submitted(cluster, tmp_path, "hurt")
    checkpoints = tmp_path / "runs" / "hurt"
    while len(list(checkpoints.glob("checkpoint_2*"))) < 2:
        assert job.poll() is None, log.read_text()
        time.sleep(0.05)
    time.sleep(0.5)
    victim = next(number for number in (1, 2) if train_workers(cluster.processes(number)))
    cluster.cut_power(victim)
    text = finished(job, log)
    assert re.search(r"resumed after epoch \d, step \d+, on 2 workers", text), text
    assert outcome(checkpoints) == outcome(tmp_path / "runs" / "whole")
