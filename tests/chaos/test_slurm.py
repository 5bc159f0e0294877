"""Slurm's way (docs/deploy.md): one command, started on all machines at once, makes a cluster, trains, and ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.machines import ADDRESSES, SHARED, Machines, needs_machines
from tests.helpers.runs import EPOCHS, options, outcome, settings

ROOT = Path(__file__).parents[2]
NODES = (1, 2, 3)  # the first machine is the user's own computer

pytestmark = [pytest.mark.chaos, needs_machines]


def test_the_same_command_on_all_machines_trains_on_them(tmp_path: Path) -> None:
    """Each machine has one CPU, so that the two workers are on two machines."""
    mine = settings(Path(SHARED), "name=slurm", "resources.workers=2", "resources.cpus_per_worker=1")
    train = " ".join(f"'{word}'" for word in ["train", "--preset", "digits", *options(mine)])
    ray = f"ray symmetric-run --address {ADDRESSES[1]}:6379 --min-nodes {len(NODES)} --num-cpus 1"
    network = "GLOO_SOCKET_IFNAME=eth0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300"
    command = f"cd {ROOT} && {network} {ray} --disable-usage-stats -- digpro {train}"
    with Machines(tmp_path) as machines:
        logs = {number: tmp_path / f"task{number}.log" for number in NODES}
        tasks = [machines.start_on(number, command, log) for number, log in logs.items()]
        statuses = [task.wait(500) for task in tasks]
        assert statuses == [0] * len(NODES), "\n".join(log.read_text() for log in logs.values())
        history, labels = outcome(machines.shared / "runs/slurm")
        assert [epoch["epoch"] for epoch in history] == list(range(EPOCHS + 1))
        assert len(labels) == 1797
        assert not [left for number in NODES for left in machines.processes(number, "raylet/raylet")]
