"""A Ray cluster on one machine whose nodes have separate addresses: one network namespace each, joined by a bridge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

PREFIX, NETWORK = "digpro", "10.231.7"
GCS_PORT, DASHBOARD_PORT = 6379, 8265
BIN = Path(sys.executable).parent


def ip(*arguments: str) -> None:
    """Run the `ip` command."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def join_namespaces(addresses: dict[str, str]) -> None:
    """Create a network namespace for each name, with its address, all on one network; the first has the bridge."""
    [(head, own), *others] = addresses.items()
    for name in addresses:
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    ip("-n", head, "link", "add", "bridge", "type", "bridge")
    ip("-n", head, "addr", "add", f"{own}/24", "dev", "bridge")
    ip("-n", head, "link", "set", "bridge", "up")
    for number, (name, address) in enumerate(others, start=2):
        ip("link", "add", f"port{number}", "netns", head, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("-n", head, "link", "set", f"port{number}", "master", "bridge", "up")
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")


class NamespaceCluster:
    """`count` nodes with `cpus` each; the first is the head, and its dashboard listens on its loopback only.

    Use it as a context manager. Needs Linux and root.
    """

    def __init__(self, count: int, cpus: int = 1) -> None:
        self.names = [f"{PREFIX}{number}" for number in range(count)]
        self.cpus = cpus
        self.folder = Path(tempfile.mkdtemp(prefix="dp", dir="/tmp"))  # Ray's socket paths must be short
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.nodes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> NamespaceCluster:
        try:
            join_namespaces({name: f"{NETWORK}.{number}" for number, name in enumerate(self.names, start=1)})
            for number in range(len(self.names)):
                self._start_node(number)
            self._wait_for_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number, name in enumerate(self.names):
            self.kill_node(number)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def run_on(self, number: int, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on a node."""
        where = ["ip", "netns", "exec", self.names[number]]
        return subprocess.run([*where, *command], env=self.environment, text=True, check=False, **options)

    def start_on(self, number: int, *command: str, log: Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command on a node."""
        where = ["ip", "netns", "exec", self.names[number]]
        with log.open("ab") as out:
            return subprocess.Popen(
                [*where, *command], env=self.environment, stdout=out, stderr=subprocess.STDOUT, **options
            )

    def processes(self, number: int) -> list[psutil.Process]:
        """All processes on a node."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.names[number]], capture_output=True, text=True, check=False
        )
        alive = [int(pid) for pid in listed.stdout.split() if psutil.pid_exists(int(pid))]
        return [psutil.Process(pid) for pid in alive]

    def cut_power(self, number: int) -> None:
        """End a node silently: its network is cut first, so that its peers see no connection close."""
        ip("-n", self.names[0], "link", "set", f"port{number + 1}", "down")
        self.kill_node(number)

    def kill_node(self, number: int) -> None:
        """Send signal 9 to every process on a node."""
        for _ in range(3):  # a child may be started while its parent is being killed
            for process in self.processes(number):
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.2)

    def _start_node(self, number: int) -> None:
        own = f"{NETWORK}.{number + 1}"
        if number == 0:
            role = ["--head", f"--port={GCS_PORT}", "--dashboard-host=127.0.0.1", f"--dashboard-port={DASHBOARD_PORT}"]
        else:
            role = [f"--address={NETWORK}.1:{GCS_PORT}"]
        temporary = self.folder / str(number)
        self.environment["GLOO_SOCKET_IFNAME"] = "eth0" if number else "bridge"
        node = self.start_on(
            number,
            "ray",
            "start",
            *role,
            f"--node-ip-address={own}",
            f"--num-cpus={self.cpus}",
            f"--temp-dir={temporary}",
            "--object-store-memory=200000000",
            "--disable-usage-stats",
            "--block",
            log=self.folder / f"node{number}.log",
        )
        self.nodes.append(node)
        time.sleep(5 if number == 0 else 0)  # the others need the head

    def _wait_for_nodes(self) -> None:
        deadline = time.monotonic() + 120
        while len(self.alive_nodes()) < len(self.names):
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("node*.log")))
                raise TimeoutError(
                    f"of {len(self.names)} nodes only {self.alive_nodes()} started within 120 s; their logs:\n{logs}"
                )
            time.sleep(1)

    def alive_nodes(self) -> list[str]:
        """Addresses of the nodes that the cluster has, sorted."""
        address = f"http://127.0.0.1:{DASHBOARD_PORT}"
        listed = self.run_on(0, "ray", "list", "nodes", "--address", address, "--format=json", capture_output=True)
        nodes = json.loads(listed.stdout) if listed.stdout.startswith("[") else []  # an error while it starts
        return sorted(node["node_ip"] for node in nodes if node["state"] == "ALIVE")
