"""Machines for `ray up`: each with a network, processes, /home, /tmp and an ssh server of its own, on this machine.

The first is the user's own computer. The others have the addresses, the user and the shared folder of
deploy/onpremise.yaml, so that the file is used as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from uv import find_uv_bin

from tests.chaos.namespaces import BIN, ip, join_namespaces

HOME, SHARED = "/home/digpro", "/mnt/digpro"
ADDRESSES = ("192.0.2.1", "192.0.2.10", "192.0.2.11", "192.0.2.12")  # the computer, the head, two workers
TOOLS = ("ip", "unshare", "nsenter", "sshd", "ssh", "ssh-keygen", "rsync")

# Mounts are private to the machine and go with it. The user is an alias of root, who may read this checkout's packages.
BOOT = """
mount -t tmpfs machine /mnt && mkdir /mnt/digpro && mount --bind "$SHARED" /mnt/digpro
cp -r "$FOLDER/home" /mnt/home
mount --bind "$FOLDER/passwd" /etc/passwd
mount -t tmpfs machine /home && mv /mnt/home /home/digpro
mount -t tmpfs machine /run && mkdir /run/sshd
mount -t tmpfs machine /tmp && chmod 1777 /tmp
hostname "$NAME"
[ "$SERVER" = no ] || ip route add default via 192.0.2.1
[ "$SERVER" = no ] || $SSHD -f /home/digpro/sshd_config -E /mnt/sshd.log
touch /mnt/ready
while :; do sleep 3600; done  # bash, as the first process, collects the processes that lost their parents
"""


def missing_tools() -> list[str]:
    """What this machine lacks: Debian's iproute2, openssh-server and rsync."""
    return [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]


needs_machines = pytest.mark.skipif(
    os.geteuid() != 0 or bool(missing_tools()), reason=f"needs root and, of its tools, {missing_tools()}"
)


class Machines:
    """The machines of `ADDRESSES`, as a context manager. Needs Linux and root.

    Parameters
    ----------
    folder : Path
        For keys, logs, and the folder that all machines share.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.shared = folder, folder / "shared"
        self.names = [f"machine{number}" for number in range(len(ADDRESSES))]
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.environment = {
            "HOME": HOME,
            "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "TERM": "dumb",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "LANG": "C.UTF-8",
        }

    def __enter__(self) -> Machines:
        try:
            self.shared.mkdir(parents=True)
            self._write_home()
            join_namespaces(dict(zip(self.names, ADDRESSES, strict=True)))
            for number in range(len(self.names)):
                self._boot(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number, name in enumerate(self.names):
            self.cut_power(number)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def run_on(self, number: int, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a machine; its output is captured."""
        return subprocess.run(
            self._inside(number, command), env=self.environment, text=True, check=False, capture_output=True, **options
        )

    def start_on(self, number: int, command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a shell command on a machine."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self._inside(number, command), env=self.environment, stdout=out, stderr=subprocess.STDOUT
            )

    def cut_cable(self, number: int) -> None:
        """Take a machine off the network; what runs on it runs on."""
        ip("-n", self.names[0], "link", "set", f"port{number + 1}", "down")

    def cut_power(self, number: int) -> None:
        """End every process of a machine."""
        if machine := self.running.pop(number, None):
            machine.kill()  # and with it the first process of the machine, whose end takes the others along
            machine.wait()

    def processes(self, number: int, word: str) -> list[psutil.Process]:
        """Those on a machine whose command line has the word."""
        found = []
        for process in self._first(number).children(recursive=True):
            try:
                if any(word in part for part in process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def _inside(self, number: int, command: str) -> list[str]:
        spaces = ("--mount", "--uts", "--pid", "--net")
        return ["nsenter", f"--target={self._first(number).pid}", *spaces, "bash", "-c", command]

    def _first(self, number: int) -> psutil.Process:
        [first] = psutil.Process(self.running[number].pid).children()
        return first

    def _boot(self, number: int) -> None:
        name, shared = self.names[number], str(self.shared)
        spaces = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        mine = {"NAME": name, "FOLDER": str(self.folder), "SHARED": shared, "SERVER": "yes" if number else "no"}
        sshd = str(shutil.which("sshd", path="/usr/sbin"))
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[number] = subprocess.Popen(
                ["ip", "netns", "exec", name, *spaces, "bash", "-ec", BOOT],
                env=self.environment | mine | {"SSHD": sshd},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait_for_boot(number)

    def _wait_for_boot(self, number: int) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.running[number].poll() is None:
            try:
                if self.run_on(number, "test -e /mnt/ready").returncode == 0:
                    return
            except (ValueError, psutil.Error):
                pass  # its first process has not started
            time.sleep(0.1)
        log = (self.folder / f"{self.names[number]}.log").read_text()
        raise TimeoutError(f"{self.names[number]} did not start within 30 s: {log}")

    def _write_home(self) -> None:
        """The home folder of every machine: keys, uv as if installed, and packages from this machine's cache."""
        home = self.folder / "home"
        (home / ".ssh").mkdir(parents=True)
        (home / ".ray").mkdir()
        (home / ".local/bin").mkdir(parents=True)
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", ""]
        for file in (home / ".ssh/id_ed25519", home / "host_key"):
            subprocess.run([*key, "-f", str(file)], check=True)
        (home / ".ssh/authorized_keys").write_text((home / ".ssh/id_ed25519.pub").read_text())
        (home / ".ray/auth_token").write_text("0123456789abcdef0123456789abcdef")
        (home / ".local/bin/uv").symlink_to(find_uv_bin())
        (home / ".bashrc").write_text(
            f"export UV_CACHE_DIR={uv_cache()} UV_OFFLINE=1 UV_LINK_MODE=symlink\n"
            f"export PATH=$PATH:{Path(sys.base_prefix, 'bin')}\n"
        )
        (home / "sshd_config").write_text(
            f"HostKey {HOME}/host_key\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n"
            "Subsystem sftp internal-sftp\n"
        )
        (self.folder / "passwd").write_text(f"digpro:x:0:0::{HOME}:/bin/bash\n" + Path("/etc/passwd").read_text())


def uv_cache() -> str:
    """Where uv keeps the packages that it has downloaded."""
    return subprocess.run([find_uv_bin(), "cache", "dir"], check=True, capture_output=True, text=True).stdout.strip()
