"""`ray up deploy/onpremise.yaml`, unchanged, on three machines of our own: to a finished job, and down again."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.machines import SHARED, Machines, needs_machines
from tests.helpers.runs import options, outcome, settings, train_workers

ROOT = Path(__file__).parents[2]
HEAD, WORKERS = 1, (2, 3)
LAUNCH_FILE = "deploy/onpremise.yaml"

pytestmark = [pytest.mark.chaos, needs_machines]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with Machines(tmp_path) as started:
        yield started


def wait_until(condition: Callable[[], bool], seconds: float, failure: Callable[[], str]) -> None:
    """Wait for a condition; fails with the text after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, failure()
        time.sleep(1)


def ray(machines: Machines, command: str) -> str:
    """The output of a command of Ray on the user's computer, given in the root of this checkout."""
    done = machines.run_on(0, f"cd {ROOT} && ray {command}", timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def raylets(machines: Machines, number: int) -> list[psutil.Process]:
    return machines.processes(number, "raylet/raylet")


def count_nodes(machines: Machines) -> int:
    """The nodes that the head has, as a shell on it tells."""
    status = machines.run_on(HEAD, "bash -ic 'ray list nodes --format=json'")
    return status.stdout.count('"ALIVE"')


def submit(machines: Machines, name: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Submit a training job from the user's computer; returns its process and its log.

    tests/chaos/test_namespaces.py compares the result of such a job with that of one without a loss.
    """
    half = (os.cpu_count() or 2) // 2  # of a machine: three workers never fit on the head alone
    mine = ["optim.epochs=4", "resources.workers=3", f"resources.cpus_per_worker={half}"]
    arguments = " ".join(f"'{word}'" for word in options(settings(Path(SHARED), f"name={name}", *mine)))
    tracking = "--set tracking.uri=http://192.0.2.10:5000"
    log = machines.folder / f"{name}.log"
    command = f"cd {ROOT} && digpro submit --address http://127.0.0.1:8265 train {arguments} {tracking}"
    return machines.start_on(0, command, log), log


def test_from_nothing_to_a_finished_job_and_down_again(machines: Machines) -> None:
    ray(machines, f"up -y {LAUNCH_FILE}")
    monitor = "tail -n 40 /tmp/ray/session_latest/logs/monitor.*"
    wait_until(lambda: count_nodes(machines) == 3, 300, lambda: machines.run_on(HEAD, monitor).stdout)
    for number in (HEAD, *WORKERS):
        [raylet] = raylets(machines, number)
        assert "OMP_NUM_THREADS" not in raylet.environ(), "all workers would compute with one thread"
        assert raylet.environ()["RAY_AUTH_MODE"] == "token"

    machines.start_on(0, f"cd {ROOT} && ray dashboard {LAUNCH_FILE}", machines.folder / "dashboard.log")
    wait_until(
        lambda: machines.run_on(0, "curl -s http://127.0.0.1:8265").returncode == 0,
        60,
        lambda: (machines.folder / "dashboard.log").read_text(),
    )
    job, log = submit(machines, "interrupted")
    folder = machines.shared / "runs/interrupted"
    while len(list(folder.glob("checkpoint_2*"))) < 2:
        assert job.poll() is None, log.read_text()
        time.sleep(0.05)
    victim = next(number for number in WORKERS if train_workers(machines.processes(number, "ray::")))
    machines.cut_cable(victim)
    assert job.wait(400) == 0, log.read_text()
    assert re.search(r"resumed after epoch \d, step \d+, on 3 workers", log.read_text()), log.read_text()
    history, labels = outcome(folder)
    assert [epoch["epoch"] for epoch in history] == list(range(5))
    assert len(labels) == 1797

    ray(machines, f"down -y {LAUNCH_FILE}")
    [left] = [number for number in WORKERS if number != victim]
    assert not raylets(machines, HEAD)
    wait_until(lambda: not raylets(machines, left), 120, lambda: "the other worker runs on")
    assert machines.processes(HEAD, "mlflow"), "its records can still be read"
