"""Problems on the driver's machine that keep Ray from starting or make it hang silently. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from pipeline.checks.finding import Finding
from pipeline.errors import first_line
from pipeline.ray_private import session_socket

# Modules of these names are never imported by a library; `pipeline` may well be in the working folder too.
HARMLESS = {"test", "tests", "example", "examples", "pipeline"}
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # longest path of a Unix socket
SHARED_MEMORY = "/dev/shm"


def machine_findings(*, starts_cluster: bool) -> list[Finding]:
    """Findings about this machine; with `starts_cluster` also what only a cluster that is started here needs."""
    findings = list(shadowing_modules([os.getcwd(), os.path.dirname(os.path.realpath(sys.argv[0]))]))
    if starts_cluster:
        findings += [_temporary_folder(ray_temporary_folder()), *_shared_memory(SHARED_MEMORY)]
    return findings


def ray_temporary_folder() -> str:
    """Where Ray keeps the logs and sockets of its sessions, in a folder `ray`."""
    named = os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if sys.platform == "linux" else None)
    return named or "/tmp"


def shadowing_modules(folders: list[str]) -> Iterator[Finding]:
    """Modules in `folders` that Ray's workers would import in place of a library's, because they look there first.

    A worker that cannot start is restarted forever, without a message.
    """
    folders = list(dict.fromkeys(map(os.path.realpath, folders)))
    elsewhere = [place for place in sys.path if os.path.realpath(place or ".") not in folders]
    for folder in folders:
        for entry in sorted(os.listdir(folder)):
            name = entry.partition(".")[0]
            if name in HARMLESS or name in sys.builtin_module_names or not name.isidentifier():
                continue
            if _is_module(name, [folder]) and (name in sys.stdlib_module_names or _is_module(name, elsewhere)):
                found = f"workers would import {os.path.join(folder, entry)} instead of the library {name!r}"
                yield Finding("working folder", found, "rename it, or start the command in another folder")


def _is_module(name: str, folders: list[str]) -> bool:
    """Whether `import name` finds a file there; a folder without __init__.py does not count, as for Python."""
    spec = PathFinder.find_spec(name, folders)
    return spec is not None and spec.has_location


def _temporary_folder(base: str) -> Finding:
    what, remedy = "temporary folder", "set RAY_TMPDIR to a short, writable path, such as /tmp"
    longest = session_socket(os.path.abspath(base), os.getpid())
    if (over := len(os.fsencode(longest)) - SOCKET_BYTES) > 0:
        found = f"{base} is {over} bytes too long: the path of a Ray socket in it can have {SOCKET_BYTES} bytes"
        return Finding(what, found, remedy)
    folder = f"{base}/ray"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Finding(what, folder)
    except OSError as error:
        return Finding(what, f"{folder} cannot be written ({first_line(error)})", remedy)


def _shared_memory(folder: str) -> Iterator[Finding]:
    """Linux only: elsewhere Ray keeps its objects in the temporary folder."""
    if sys.platform == "linux" and not os.path.isdir(folder):
        remedy = "mount it: `docker run --shm-size=4g`, or in Kubernetes an emptyDir with medium: Memory"
        yield Finding("shared memory", f"{folder}, where Ray keeps its objects, does not exist", remedy)
