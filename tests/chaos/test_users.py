"""Two users, two clusters and several projects on one machine: none sees, stops or changes what another does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import pipeline
from tests.helpers.runs import EPOCHS, SETTINGS, end, family, options, outcome

FIRST, SECOND = 20001, 20002  # user ids without an account, as in a container
PORT = 6410


def as_user(user: int, command: list[str]) -> list[str]:
    """The command as another user runs it."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]


def others_can_run_this() -> bool:
    """Whether another user may become active here, and may read Python, its packages and this checkout."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return False
    importing = [sys.executable, "-c", "import ray, pipeline.cli; print(pipeline.cli.__file__)"]
    done = subprocess.run(as_user(FIRST, importing), cwd="/tmp", capture_output=True, text=True, check=False)
    return done.stdout.strip() == str(Path(pipeline.__file__).parent / "cli.py")


pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(
        not others_can_run_this(), reason="needs root, setpriv, and a Python and a checkout that all users can read"
    ),
]


@pytest.fixture
def homes() -> Iterator[dict[int, Path]]:
    """A home for each user; Ray's socket paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="u", dir="/tmp"))
    folder.chmod(0o755)
    for user in (FIRST, SECOND):
        (folder / str(user)).mkdir()
        os.chown(folder / str(user), user, user)
    yield {user: folder / str(user) for user in (FIRST, SECOND)}
    shutil.rmtree(folder)


def start(user: int, home: Path, project: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
    """Start a command of a user in the folder of a project; its output goes to `log` there."""
    folder = home / project
    folder.mkdir(exist_ok=True)
    os.chown(folder, user, user)
    unwanted = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE")
    inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
    own = {"HOME": str(home), "USER": f"user{user}", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            as_user(user, command),
            cwd=folder,
            env=inherited | own | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def train(*more: str) -> list[str]:
    """The same run in each project, in the default folders."""
    settings = [*SETTINGS, "resources.workers=1", "name=run", *more]
    return [sys.executable, "-m", "pipeline.cli", "train", *options(settings)]


def test_users_and_projects_train_at_the_same_time(homes: dict[int, Path]) -> None:
    places = [(FIRST, "one"), (FIRST, "two"), (SECOND, "one")]
    runs = [start(user, homes[user], project, train()) for user, project in places]
    for run, (user, project) in zip(runs, places, strict=True):
        assert run.wait(500) == 0, (homes[user] / project / "log").read_text()
    folders = [homes[user] / project / "runs" / "run" for user, project in places]
    first, *others = [outcome(folder) for folder in folders]
    assert len(first[0]) == EPOCHS + 1
    assert others == [first, first]
    for (user, project), folder in zip(places, folders, strict=True):
        assert folder.stat().st_uid == user
        mlflow = json.loads((folder / "summary.json").read_text())["mlflow"]["uri"]
        assert mlflow == f"sqlite:///{homes[user]}/{project}/runs/mlflow.db"


def test_a_cluster_of_one_user_is_not_that_of_another(homes: dict[int, Path]) -> None:
    head = ["ray", "start", "--head", "--block", f"--port={PORT}", "--num-cpus=1", "--include-dashboard=false"]
    cluster = start(FIRST, homes[FIRST], "cluster", [*head, "--disable-usage-stats"], RAY_AUTH_MODE="disabled")
    try:
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (said := (homes[FIRST] / "cluster" / "log").read_text()):
            assert time.monotonic() < deadline, said
            time.sleep(0.5)
        own = start(FIRST, homes[FIRST], "one", train(), RAY_AUTH_MODE="disabled")
        other = start(SECOND, homes[SECOND], "one", train())
        for run, user in ((own, FIRST), (other, SECOND)):
            assert run.wait(500) == 0, (homes[user] / "one" / "log").read_text()
        hardware = [
            json.loads((homes[user] / "one" / "runs" / "run" / "summary.json").read_text())["hardware"]
            for user in (FIRST, SECOND)
        ]
        assert [found["cluster_cpus"] for found in hardware] == [1, os.cpu_count()]
        assert cluster.poll() is None
    finally:
        end([*family(cluster.pid), psutil.Process(cluster.pid)])
        cluster.wait()
