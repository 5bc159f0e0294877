"""Jobs: what is refused before anything is sent, and real ones on a real cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from mlflow import MlflowClient

from pipeline import cli
from pipeline.checks.working_dir import ENTRY_BYTES, travelling_files, working_dir_finding
from pipeline.data.ingest import ingest
from pipeline.errors import ConfigError, Interrupted, RunFailed
from pipeline.submission import PYTHON, VERBS, connect_to, job_script
from pipeline.submission import submit as send
from pipeline.training.checkpoint import newest_in
from tests.helpers.images import put
from tests.helpers.runs import ONE_THREAD, end, family, options, settings

ROOT = Path(__file__).parent.parent


def test_every_job_says_the_line_that_submits_it() -> None:
    for script in sorted((ROOT / "jobs").glob("*.py")):
        text = script.read_text()
        assert "    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\\n" in text
        assert f"python jobs/{script.name} " in text
        assert f'main("{script.stem.replace("_", "-")}")' in text


def test_what_travels_is_what_git_would_keep(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("secret.yaml\n")
    for name in ("secret.yaml", "jobs/train.py", "runs/big.bin", "pipeline/data/read.py", ".venv/lib.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    found = travelling_files(str(tmp_path))
    assert found == {".gitignore": 12, "jobs/train.py": 3, "pipeline/data/read.py": 3}


def test_this_project_is_small_enough_to_travel() -> None:
    files = travelling_files(str(ROOT))
    assert "pipeline/cli.py" in files
    assert not [name for name in files if name.startswith(("runs/", "data/", ".venv/", ".git/"))]
    assert not working_dir_finding(str(ROOT), files).remedy


def test_what_travels_follows_rays_own_switches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / ".gitignore", b"secret.yaml\n")
    put(tmp_path / "secret.yaml", b"123")
    put(tmp_path / "venv" / "lib.so", b"123")
    assert list(travelling_files(str(tmp_path))) == [".gitignore"]
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert set(travelling_files(str(tmp_path))) == {".gitignore", "secret.yaml"}


def test_a_folder_that_is_too_large_names_its_largest_files() -> None:
    finding = working_dir_finding("here", {"video.mp4": 60 << 20, "small": 1 << 20, "film.mp4": 40 << 20})
    assert re.search(r"has 101\.0 MiB to send with a job, but a cluster accepts at most 100 MiB", finding.found)
    assert "video.mp4 (60 MiB), film.mp4 (40 MiB)" in finding.remedy
    assert not working_dir_finding("here", {"video.mp4": 99 << 20}).remedy


def test_the_size_is_that_of_the_archive_that_ray_sends(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    for number in range(50):
        put(tmp_path / "here" / f"folder-{number}" / "a file with a long name", bytes(number))
    create_package(str(tmp_path / "here"), tmp_path / "sent.zip", include_gitignore=True)
    counted = sum(size + ENTRY_BYTES + 2 * len(name) for name, size in travelling_files(str(tmp_path / "here")).items())
    folders = 50 * (ENTRY_BYTES + 2 * len("folder-00/"))
    assert counted <= (tmp_path / "sent.zip").stat().st_size <= counted + folders + 100


def test_code_that_would_not_travel_is_named(tmp_path: Path) -> None:
    """Patterns that are not anchored hit folders of ours too; the job would silently run other code."""
    for name in (".gitignore", "pipeline/cli.py", "pipeline/data/read.py", "pipeline/runs/train.py", "jobs/train.py"):
        put(tmp_path / name, b"data/\nruns/\n")
    finding = working_dir_finding(str(tmp_path), travelling_files(str(tmp_path)))
    assert finding.found == "'pipeline/data/read.py' and 1 other files would not be sent with a job"
    assert "anchor its patterns: /data/, not data/" in finding.remedy
    put(tmp_path / ".gitignore", b"/data/\n/runs/\n")
    assert not working_dir_finding(str(tmp_path), travelling_files(str(tmp_path))).remedy


sent_variables = list[dict[str, str]]()


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """`digpro submit` in a project folder with a cluster that takes every job: (status, stderr, jobs sent)."""
    sent = list[str]()

    class Client:
        def submit_job(self, entrypoint: str, runtime_env: dict[str, dict[str, str]]) -> str:
            sent.append(entrypoint)
            sent_variables.append(runtime_env["env_vars"])
            return "raysubmit_1"

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "epoch 1/3\n"
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    monkeypatch.setattr("pipeline.submission.connect_to", lambda address: Client())
    monkeypatch.setattr("pipeline.submission.cluster_versions", lambda client: (ray.__version__, "3.12.1"))
    for name in (*(f"jobs/{verb.replace('-', '_')}.py" for verb in VERBS), "here.py", "mine.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("data: {path: s3://b/d}\nstorage: s3://b/runs\n")
    (tmp_path / ".gitignore").write_text("secret.txt\n")
    for name in ("secret.txt", "lists/own.txt", "twice.txt", "names.yaml"):
        put(tmp_path / name, b"cat\n" * (2 if name == "twice.txt" else 1))

    def run(*arguments: str) -> tuple[int, str, list[str]]:
        line = ["digpro", "submit", "--detach", "--working-dir", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().err, sent

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--set", "optim.lrr=1", "--set", "storage=/r"], "optim.lrr: unknown key; did you mean 'lr'"),
        (["train", "--set", "storage=/runs"], "data.path='data/digits' is a relative path"),
        (["train", "--set", "data.path=s3://b/d"], "storage='runs' is a relative path"),
        (["train", "--set", "data.path=s3://KEY:S@b/d"], "holds a key or password"),
        (["assign", "/runs/x", "imagefolder:s3://KEY:S@b/d", "/out"], "holds a key or password"),
        (["train", "--preset", "other.yaml"], "'other.yaml' would not be sent"),
        (["train", "--epochs", "3"], "No such option: --epochs"),
        (["tune", "--set", "storage=/runs"], "Missing option '--space'"),
        (["tune", "--space", "tune_spaces/mine"], "'tune_spaces/mine.py' would not be sent"),
        (["tune", "--space", "here.py", "--set", "storage=/runs"], "data.path='data/digits' is a relative path"),
        (["tune", "--space", "here.py", "--workers", "3"], "No such option: --workers"),
        (["tune", "--space", "here.py", "--trials", "many"], "--trials"),
        (["ingest", "digits", "data/digits"], "out='data/digits' is a relative path"),
        (["ingest", "digits", "digits"], "out='digits' is a relative path"),
        (["ingest", "imagefolder:photos", "/mnt/x"], "source='imagefolder:photos' is a relative path"),
        (["ingest", "digits", "/mnt/x", "--rows-per-shard", "0"], "--rows-per-shard"),
        (["ingest", "digits"], "Missing argument"),
        (["ingest", "digits", "/mnt/x", "--classes", "imagenet10"], "did you mean 'imagenet-10'?"),
        (["ingest", "digits", "/mnt/x", "--classes", "twice.txt"], "names 'cat' a second time in line 2"),
        (["ingest", "digits", "/mnt/x", "--classes", "secret.txt"], "'secret.txt' would not be sent"),
        (["embed", "data/photos", "/mnt/features"], "data='data/photos' is a relative path"),
        (["embed", "/mnt/photos", "features"], "out='features' is a relative path"),
        (["embed", "/mnt/photos", "/mnt/f", "--set", "views.cached=1"], "views.cached"),
        (
            [
                *("train", "--set", "storage=/r", "--set", "data.path=/d"),
                *("--set", "model.encoder=torchvision:resnet18", "--set", "model.weights=w.pth"),
            ],
            "model.weights='w.pth' is a relative path",
        ),
        (["evaluate", "runs/x"], "run='runs/x' is a relative path"),
        (["evaluate", "/runs/x", "--data", "other"], "data='other' is a relative path"),
        (["evaluate", "/runs/x", "--out=here"], "out='here' is a relative path"),
        (["sweep-k", "runs/x"], "data='runs/x' is a relative path"),
        (["sweep-k", "/mnt/photos", "--out", "here"], "out='here' is a relative path"),
        (["sweep-k", "/mnt/photos", "--to", "many"], "--to"),
        (["tran"], "'tran' is not a command that runs as a job; submit one of doctor, ingest, embed"),
        (["presets"], "'presets' is not a command that runs as a job; submit one of doctor, ingest"),
        (["doctor"], "data.path='data/digits' is a relative path"),
        (["report", "runs/x"], "run='runs/x' is a relative path"),
        (["export", "/runs/x", "--format", "onnx", "--out", "here"], "out='here' is a relative path"),
        (["label", "/runs/x", "3=truck", "secret.txt"], "'secret.txt' would not be sent"),
        (["deliver", "runs/x"], "run='runs/x' is a relative path"),
        (["sort", "s3://b/runs/x", "sorted"], "out='sorted' is a relative path"),
        (["compare", "s3://b/runs/x", "runs/y", "--out", "s3://b/c"], "runs 2='runs/y' is a relative path"),
        (["combine", "s3://b/runs/x", "s3://b/runs/y", "--out", "runs/z"], "out='runs/z' is a relative path"),
        (["train", "--from", "runs/x"], "start_from='runs/x' is a relative path"),
        (["train", "--from", "/runs/x", "--preset", "photos"], "--preset photos and --from /runs/x both give"),
    ],
)
def test_what_could_not_work_on_a_cluster_is_refused_here(submit, arguments: list[str], said: str) -> None:
    status, error, sent = submit(*arguments)
    assert (status, sent) == (2, [])
    assert said in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "-s", "data.path=s3://b/d", "--set", "storage=/mnt/runs"],
        ["train", "--preset", "mine.yaml"],
        ["embed", "/mnt/photos", "s3://b/features", "--encoder", "timm:resnet18", "--views", "4"],
        ["tune", "--space", "here", "--trials", "3", "-s", "data.path=s3://b/d", "--set", "storage=/mnt/runs"],
        ["ingest", "imagefolder:/mnt/photos", "s3://b/photos", "--rows-per-shard", "1000"],
        ["ingest", "--rows-per-shard=1000", "digits", "/mnt/my shards"],
        ["ingest", "torchvision:CIFAR10:/mnt/cifar", "/mnt/shards"],
        ["ingest", "imagefolder:/mnt/imagenet/train", "/mnt/x", "--classes", "imagenet-10"],
        ["ingest", "imagefolder:/mnt/imagenet/train", "/mnt/x", "--classes", "lists/own.txt"],
        ["ingest", "imagefolder:/mnt/imagenet/train", "/mnt/x", "--classes", "/mnt/lists/of-the-cluster.txt"],
        ["ingest", "imagefolder:/mnt/imagenet/train", "/mnt/x", "--classes=s3://b/lists/own.txt"],
        ["assign", "s3://b/runs/x", "imagefolder:/mnt/photos", "s3://b/assigned", "--classes"],
        ["evaluate", "s3://b/runs/x", "--data", "s3://b/d?endpoint_override=minio:9000"],
        ["sweep-k", "s3://b/runs/x", "--from", "5", "--to", "50"],
        ["doctor", "--set", "data.path=s3://b/d", "--set", "storage=/mnt/runs"],
        ["report", "s3://b/runs/x"],
        ["export", "s3://b/runs/x", "--format", "pt2"],
        ["export", "0123456789abcdef0123456789abcdef", "--format", "pt2", "--out", "s3://b/c"],
        ["assign", "registered/3", "digits", "s3://b/assigned"],
        ["label", "s3://b/runs/x", "3=sports car", "names.yaml", "/mnt/names.yaml"],
        ["deliver", "s3://b/runs/x", "--uri", "http://mlflow:5000"],
        ["sort", "s3://b/runs/x", "s3://b/sorted", "--top", "3"],
        ["compare", "s3://b/runs/x", "s3://b/runs/y", "--out", "s3://b/c"],
        ["combine", "s3://b/runs/x", "s3://b/runs/y", "--out", "s3://b/runs/z"],
        ["train", "--from", "s3://b/runs/x", "--set", "optim.epochs=20"],
    ],
)
def test_what_works_anywhere_is_sent_as_it_was_typed(submit, arguments: list[str]) -> None:
    status, error, sent = submit(*arguments)
    assert (status, error) == (0, "")
    script = f"jobs/{arguments[0].replace('-', '_')}.py"
    assert [shlex.split(line) for line in sent] == [["python", script, *arguments[1:]]]


def test_variables_travel_by_name_and_are_not_shown(
    submit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden=1")
    report = ["report", "/runs/x"]
    given = ["--env", "MLFLOW_TRACKING_PASSWORD", "--env", "NCCL_DEBUG=INFO", "--env", "EMPTY="]
    assert submit(*given, *report)[0] == 0
    assert sent_variables.pop() == {
        "PYTHONUNBUFFERED": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "MLFLOW_TRACKING_PASSWORD": "hidden=1",
        "NCCL_DEBUG": "INFO",
        "EMPTY": "",
    }
    sent = submit("--env", "ABSENT_HERE", *report)
    assert sent[:2] == (
        2,
        "error: --env ABSENT_HERE: this environment has no such variable; export it, or give ABSENT_HERE=VALUE\n",
    )
    monkeypatch.setenv("SECRET", "hidden$HOME")
    status, error, _ = submit("--env", "SECRET", *report)
    assert (status, "--env SECRET: Ray would expand the variable" in error, "hidden" in error) == (2, True, False)
    assert submit("--env", "SECRET=a$", *report)[0] == 0
    status, error, _ = submit("--env", "MY KEY=hidden", *report)
    assert (status, "'MY KEY' is not a variable name" in error, "hidden" in error) == (2, True, False)


@pytest.mark.parametrize("versions", [("2.50.1", "3.11.4"), (ray.__version__, "3.10.14")])
def test_a_cluster_of_other_versions_is_refused(
    submit, monkeypatch: pytest.MonkeyPatch, versions: tuple[str, str]
) -> None:
    monkeypatch.setattr("pipeline.submission.cluster_versions", lambda client: versions)
    status, error, sent = submit("report", "/runs/x")
    assert (status, sent) == (2, [])
    assert f"the cluster runs Ray {versions[0]} on Python {versions[1]}, but this project needs Ray" in error
    assert f'requires-python = ">={PYTHON}"' in (ROOT / "pyproject.toml").read_text()


def test_a_connection_that_is_lost_says_that_the_job_continues(
    submit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submit("report", "/runs/x")
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(
        RunFailed, match=r"connection to the cluster was lost \(Web.*1006\), but job raysubmit_1 continues"
    ):
        send("ingest", ["digits", "/mnt/x"], {}, folder=str(ROOT), address="http://127.0.0.1:8265")
    assert "epoch 1/3" in capsys.readouterr().out


def test_help_of_a_job_is_that_of_its_command(submit) -> None:
    assert submit("ingest", "--help") == (0, "", [])


def test_an_interrupted_follower_says_that_the_job_continues(submit, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("pipeline.submission._follow", interrupted)
    monkeypatch.setattr(sys, "argv", [])
    sent = submit("ingest", "digits", "/mnt/x")[2]
    with pytest.raises(Interrupted, match="job raysubmit_1 continues on the cluster; stop it with: digpro stop raysub"):
        send("ingest", ["digits", "/mnt/x"], {}, folder=str(ROOT))
    assert len(sent) == 2


def test_a_folder_without_the_scripts_and_an_unknown_verb_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not contain jobs/train\.py; set --working-dir"):
        job_script("train", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"'tran' is not a command that runs as a job; submit one of doctor, ingest, embed"
    ):
        job_script("tran", str(ROOT))


def test_a_dashboard_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9"):
        connect_to("http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "")  # counts as unset
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"answers at RAY_API_SERVER_ADDRESS=http://127\.0\.0\.1:9"):
        connect_to(None)


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_an_address_on_the_line_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Ray's own client takes the environment's: the job would silently go to another cluster."""
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    with a_dashboard() as asked, a_dashboard() as other:
        monkeypatch.setenv(name, other.url)
        connect_to(asked.url)
        assert (asked.requests > 0, other.requests) == (True, 0)
        assert os.environ[name] == other.url
        connect_to(None)
        assert other.requests > 0


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "auto:1", "ray://127.0.0.1:1"])
def test_an_address_that_is_no_url_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=rf"at {address} \(not a URL that starts with http\); set .* http://127"):
        connect_to(address)


def test_a_token_that_is_refused_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(variable, raising=False)
    with (
        a_dashboard(status=401) as guarded,
        pytest.raises(ConfigError, match="requires its token; set RAY_AUTH_MODE=token"),
    ):
        connect_to(guarded.url)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    with (
        a_dashboard(status=403) as guarded,
        pytest.raises(ConfigError, match="rejects the token of RAY_AUTH_TOKEN; give"),
    ):
        connect_to(guarded.url)


@contextmanager
def a_dashboard(status: int = 200) -> Iterator[Any]:
    """A web server that answers as a dashboard's does when it is asked for its version, and counts that."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests += 1
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": ray.__version__}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.url = 0, f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_a_dashboard_that_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.submission.ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ConfigError, match=r"no answer in 0\.5 seconds"):
            connect_to(f"http://127.0.0.1:{silent.getsockname()[1]}")


PORT = 28265


def answers(address: str) -> bool:
    """Whether a web server is there, even one that wants a token first."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=2)
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The dashboard of a Ray cluster of its own process tree, on the loopback interface, with a token."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    ray = str(Path(sys.executable).with_name("ray"))
    ports = ["--port=26379", f"--dashboard-port={PORT}", "--dashboard-host=127.0.0.1"]
    ports.append(f"--dashboard-agent-listen-port={PORT + 1}")  # any other cluster of the machine has the usual one
    node = ["--head", "--block", "--num-cpus=2", f"--temp-dir={folder}", "--disable-usage-stats"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}
    os.environ |= token
    path = {"PATH": f"{Path(ray).parent}:{os.environ['PATH']}"}  # the job's `python` is this one
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([ray, "start", *ports, *node], env=os.environ | path, **quiet)
    address, deadline = f"http://127.0.0.1:{PORT}", time.monotonic() + 300
    try:
        while not answers(address):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield address
    finally:
        end([*family(process.pid), psutil.Process(process.pid)])
        process.wait()
        for name in token:
            del os.environ[name]


def digpro(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, in the project's folder."""
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=400)


@pytest.mark.slow
def test_a_submitted_job_trains_and_its_log_comes_back(dashboard: str, tmp_path: Path) -> None:
    ingest("digits", f"{tmp_path}/digits")  # sooner without Ray
    mine = options(settings(tmp_path, "name=job", "optim.epochs=1", "optim.warmup_epochs=0", *ONE_THREAD))
    done = digpro("submit", "--address", dashboard, "train", *mine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 1/1" in done.stdout
    summary = json.loads((tmp_path / "runs" / "job" / "summary.json").read_text())
    assert f"ACC {summary['scores']['acc']:.4f}" in done.stdout


@pytest.mark.slow
def test_a_job_that_fails_gives_its_status_and_reason(dashboard: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    mine = options([f"storage={tmp_path}/file/runs", f"data.path={tmp_path}/digits"])
    done = digpro("submit", "--address", dashboard, "train", *mine)
    assert done.returncode == 1
    assert "cannot be written" in done.stdout
    assert "is FAILED" in done.stderr


def wait_for(text: str, command: str, job: str, dashboard: str, seconds: float = 400) -> None:
    """Wait until `ray job status` or `ray job logs` shows a text of a job."""
    asked = [str(Path(sys.executable).with_name("ray")), "job", command, job, "--address", dashboard]
    deadline, shown = time.monotonic() + seconds, ""
    while text not in shown:
        assert time.monotonic() < deadline, shown
        shown = subprocess.run(asked, capture_output=True, text=True, check=False).stdout


def detached(dashboard: str, *arguments: str) -> str:
    """The id of a job that is left alone."""
    done = digpro("submit", "--address", dashboard, "--detach", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1].rstrip(":")


@pytest.mark.chaos  # CI has its parts: that it has the time, and that an interrupted run saves
def test_a_job_that_is_stopped_leaves_a_checkpoint_and_its_status(dashboard: str, tmp_path: Path) -> None:
    rare = ["checkpoint.every_epochs=500", "checkpoint.every_steps=null"]
    mine = options(settings(tmp_path, "name=long", "optim.epochs=500", *rare))
    job = detached(dashboard, "train", *mine)
    wait_for("/500  loss", "logs", job, dashboard)
    before = newest_in(f"{tmp_path}/runs/long")
    assert before is None or before["epoch"] == 0
    assert digpro("stop", job, "--address", dashboard).returncode == 0
    wait_for("was stopped", "status", job, dashboard)
    values = newest_in(f"{tmp_path}/runs/long")
    assert values is not None
    assert values["epoch"] >= 1
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("digpro").experiment_id])
    assert run.info.status == "KILLED"
    refused = digpro("stop", "nonsense", "--address", dashboard)
    assert refused.returncode == 2
    assert "job 'nonsense' cannot be stopped" in refused.stderr


@pytest.mark.slow
def test_a_job_that_is_stopped_has_the_time_to_end(dashboard: str, tmp_path: Path) -> None:
    """Ray would kill it after 3 seconds."""
    script = """
        import pathlib, signal, sys, time
        def end(*_):
            time.sleep(8)
            pathlib.Path(sys.argv[1]).touch()
            sys.exit(1)
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        time.sleep(300)
    """
    put(tmp_path / "jobs" / "report.py", textwrap.dedent(script).encode())
    job = detached(dashboard, "--working-dir", str(tmp_path), "report", f"{tmp_path}/ended")
    wait_for("ready", "logs", job, dashboard)
    assert digpro("stop", job, "--address", dashboard).returncode == 0
    wait_for("was stopped", "status", job, dashboard)
    assert (tmp_path / "ended").exists()


@pytest.mark.slow
def test_a_variable_reaches_the_job(dashboard: str, tmp_path: Path) -> None:
    script = "import os, ray; ray.init(); print(ray.get(ray.remote(lambda: os.environ['OF_MINE']).remote()) == 'a b')"
    put(tmp_path / "jobs" / "report.py", script.encode())
    done = digpro(
        "submit", "--address", dashboard, "--working-dir", str(tmp_path), "--env", "OF_MINE=a b", "report", "/x"
    )
    assert done.returncode == 0, done.stderr
    assert "True" in done.stdout.splitlines()
    assert "a b" not in done.stdout + done.stderr


@pytest.mark.slow
def test_the_doctor_looks_at_the_cluster(dashboard: str, tmp_path: Path) -> None:
    mine = options(settings(tmp_path))
    done = digpro("submit", "--address", dashboard, "doctor", *mine)
    assert "ok    versions on " in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_wrong_token_is_named(dashboard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    done = digpro("stop", "any", "--address", dashboard)
    assert done.returncode == 2
    assert "RAY_AUTH_TOKEN" in done.stderr
