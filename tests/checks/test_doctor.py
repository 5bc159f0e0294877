"""What the doctor finds on a healthy machine, and on nodes that are not."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from pipeline.checks import doctor, nodes
from pipeline.checks.finding import Finding
from pipeline.checks.nodes import check_nodes, shared_versions
from pipeline.cluster import connect
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.data.class_lists import ClassList
from pipeline.data.ingest import ingest
from pipeline.errors import ConfigError
from pipeline.runs.train import resolve
from pipeline.tracking import store_fault


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run on digits that are there."""
    ingest("digits", str(tmp_path / "digits"))
    overrides = [f"storage={tmp_path}/runs", f"data.path={tmp_path}/digits", "resources.workers=1"]
    return resolve(load_config("digits", overrides), "digits")


def test_images_that_are_missing_are_told(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "node_resources", lambda: [{"CPU": 4.0}])
    digits = ClassList(name="mine", images=dict.fromkeys(map(str, range(10)), None) | {"1": 200})
    ingest("digits", config.data.path, classes=digits)
    images = next(found for found in doctor._resources(config) if found.what == "images")
    assert images.found.endswith("; class counts differ from mine: 1,797 images; 1: 182 images, 200 expected")
    assert images.remedy == ""


@pytest.fixture
def own_cluster() -> Iterator[None]:
    connect()
    yield
    ray.shutdown()


def answer(**changes: Any) -> dict[str, Any]:
    """The answer of a healthy node."""
    healthy = {
        "versions": shared_versions(),
        "read": "",
        "wrote": "",
        "seen": "",
        "shm": 8 << 30,
        "object_store": 4 << 30,
        "interfaces": ["lo", "eth0"],
        "asked_interfaces": {},
        "hostname_address": "10.0.0.2",
        "own_interface": "eth0",
        "tracking": "",
    }
    return healthy | changes


def findings(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, *answers: dict[str, Any], tried: list[str] | None = None
) -> dict[str, Finding]:
    """The doctor's findings for nodes 10.0.0.1, 10.0.0.2 ... that give these answers; `tried` gets the MLflow URI."""
    asked = [] if tried is None else tried
    listed = [(f"10.0.0.{number}", said) for number, said in enumerate(answers, start=1)]
    monkeypatch.setattr(doctor, "node_resources", lambda: [{"CPU": 4.0}])
    monkeypatch.setattr(doctor, "alive_nodes", lambda: [{"NodeManagerAddress": address} for address, _ in listed])
    monkeypatch.setattr(doctor, "probe_nodes", lambda config, tracking: asked.append(tracking) or (listed, []))
    return {finding.what: finding for finding in doctor.examine(config)}


def test_nothing_is_to_fix_where_all_is_well(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(config, monkeypatch, answer())
    assert [finding for finding in found.values() if finding.remedy] == []
    assert "1,797" in found["images"].found


@pytest.mark.parametrize(
    ("changes", "what", "said"),
    [
        ({"versions": {**shared_versions(), "torch": "1.0"}}, "versions on 10.0.0.2", "torch 1.0, but"),
        ({"read": "no such file"}, "storage from 10.0.0.2", "cannot read (no such file)"),
        ({"seen": "no such file"}, "storage from 10.0.0.2", "writes to a place that the driver does not see"),
        ({"shm": 64 << 20}, "shared memory of 10.0.0.2", "/dev/shm 0.1 GiB"),
        ({"asked_interfaces": {"NCCL_SOCKET_IFNAME": "ib0"}}, "network of 10.0.0.2", "NCCL_SOCKET_IFNAME=ib0"),
        ({"hostname_address": "127.0.1.1"}, "network of 10.0.0.2", "127.0.1.1, where gloo would listen"),
        ({"tracking": "refused"}, "MLflow from 10.0.0.2", "refused"),
    ],
)
def test_what_is_wrong_on_one_node_is_named_with_the_node(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], what: str, said: str
) -> None:
    found = findings(config, monkeypatch, answer(), answer(**changes))
    assert said in found[what].found
    assert found[what].remedy
    wrong = {name for name, finding in found.items() if finding.remedy}
    assert wrong == {what, "MLflow"}  # and that a file of records does not serve two nodes


@pytest.mark.parametrize(
    ("setting", "found", "to_fix", "tried"),
    [
        ("uri=http://me:secret@host:5000", "http://***@host:5000", False, "http://me:secret@host:5000"),
        (
            "uri=sqlite:////tmp/50%25/m.db",
            "sqlite+pysqlite:////tmp/50%25/m.db is a file of one machine, but the cluster has 2 nodes",
            True,
            "",
        ),
        ("enabled=false", "nothing is recorded (tracking.enabled is false)", False, ""),
    ],
)
def test_where_the_records_go_is_shown_without_a_password(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, setting: str, found: str, to_fix: bool, tried: str
) -> None:
    values = load_config("digits", [f"tracking.{setting}"]).tracking
    uris = list[str]()
    changed = config.model_copy(update={"tracking": values})
    finding = findings(changed, monkeypatch, answer(), answer(), tried=uris)["MLflow"]
    assert (finding.found, bool(finding.remedy), uris) == (found, to_fix, [tried])


def test_what_the_cluster_cannot_give_is_named(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = config.model_copy(update={"resources": config.resources.model_copy(update={"cpus_per_worker": 99.0})})
    assert (
        "do not fit on the cluster's nodes (1 of 4 CPUs)" in findings(greedy, monkeypatch, answer())["resources"].remedy
    )


def test_training_refuses_nodes_that_do_not_share_the_storage(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "alive_nodes", lambda: [1, 2])
    listed = [("10.0.0.1", answer()), ("10.0.0.2", answer(read="no such file"))]
    monkeypatch.setattr(nodes, "probe_nodes", lambda config: (listed, []))
    with pytest.raises(ConfigError, match=r"storage from 10\.0\.0\.2: cannot read \(no such file\); set storage to"):
        check_nodes(config)


def test_an_mlflow_server_that_is_not_there_is_noticed() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert "onnection" in store_fault(f"http://127.0.0.1:{port}", "digpro")


@pytest.mark.slow
def test_a_cluster_of_this_machine_is_healthy_and_listens_to_this_machine_only(
    config: RunConfig, own_cluster: None
) -> None:
    before = set(Path(config.storage).iterdir()) if Path(config.storage).exists() else set()
    found = {finding.what: finding for finding in doctor.examine(config)}
    assert {name: finding for name, finding in found.items() if finding.remedy} == {}
    assert any(name.startswith("storage from") for name in found)
    assert set(Path(config.storage).iterdir()) == before  # the probes are gone
    mine = {process.pid for process in psutil.Process().children(recursive=True)} | {psutil.Process().pid}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in mine]
    assert listening
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}


SCRIPT = """
import sys
from pipeline import cli
from pipeline.checks import doctor
from pipeline.checks.finding import Finding
cli.connect = lambda: None
cli.machine_findings = lambda starts_cluster: MACHINE
doctor.examine = lambda config: [Finding('disk [x]', 'full', 'make room'), Finding('net', 'up')]
sys.argv = ['digpro', 'doctor']
cli.main()
"""


@pytest.mark.parametrize(
    ("machine", "printed"),
    [
        ("[]", ["FIX   disk [x]: full", "      -> make room", "ok    net: up"]),
        ("[Finding('home', 'gone', 'set HOME')]", ["FIX   home: gone", "      -> set HOME"]),  # Ray could not start
    ],
)
def test_the_command_ends_with_status_1_when_something_is_to_fix(
    tmp_path: Path, machine: str, printed: list[str]
) -> None:
    command = [sys.executable, "-c", SCRIPT.replace("MACHINE", machine)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == printed
