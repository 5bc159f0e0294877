"""Which Ray cluster a command finds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from pipeline import cluster
from pipeline.cluster import DASHBOARD, cluster_address, connect, own_cluster, unset_empty_variables
from pipeline.errors import ConfigError
from tests.helpers.images import put

TOKEN = "0123456789abcdef" * 2


def free_port() -> int:
    """A port of this machine at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_dashboard_is_not_a_cluster_to_connect_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=http://127\.0\.0\.1:8265 is a dashboard.*`digpro submit`"):
        connect()


@pytest.mark.parametrize("address", ["foo", "host:abc", "host:99999", "10.0.0.1:", ":6379", "tcp://a:1", "a b:1"])
def test_what_is_not_an_address_is_named(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=rf"RAY_ADDRESS={address} is not an address; give host:port"):
        connect()


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"{prefix}127.0.0.1:{free_port()}")
    start = time.monotonic()
    with pytest.raises(ConfigError, match=rf"no Ray cluster answers at RAY_ADDRESS={prefix}127"):
        connect()
    assert time.monotonic() - start < 10


def test_an_address_that_accepts_and_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ConfigError, match="no Ray cluster answers"):
            connect()
    assert cluster.ANSWER_SECONDS < 15


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Address of a control store that wants a token, as far as `ray.init` begins with it; no token is known."""

    class Guard(grpc.ServerInterceptor):
        def intercept_service(self, go_on: object, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            sent = dict(details.invocation_metadata).get("authorization")

            def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
                if sent != f"Bearer {TOKEN}":
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    server = grpc.server(ThreadPoolExecutor(1), interceptors=[Guard()])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield address
    server.stop(None).wait()


def test_a_token_that_is_refused_is_one_line_at_once(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself repeats the call for minutes."""
    monkeypatch.setenv("RAY_ADDRESS", guarded)
    with pytest.raises(ConfigError, match=rf"cluster at {guarded} requires its token; set RAY_AUTH_MODE=token, and"):
        connect()
    put(Path(os.environ["HOME"], ".ray", "auth_token"), b"f" * 32)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(
        ConfigError, match=r"rejects the token of .*/\.ray/auth_token; give the cluster's token in RAY_A"
    ):
        connect()
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert cluster_address() == guarded


def test_a_cluster_of_this_machine_gets_the_token_that_is_there(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from Ray, which sends one to a cluster that it finds without RAY_AUTH_MODE."""
    put(Path(os.environ["RAY_TMPDIR"], "ray", "ray_current_cluster"), guarded.encode())
    put(Path(os.environ["HOME"], ".ray", "auth_token"), TOKEN.encode())
    assert cluster_address() == guarded
    monkeypatch.setattr(os, "getuid", lambda: 12345)  # another user's cluster is none of ours
    assert cluster_address() is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            Exception("The current node timed out during startup. Some\n died."),
            r"within \d+ s \(The current node timed out during startup\. Some died\.\); if other programs keep it busy",
        ),
        (TimeoutError(), r"Ray did not start on this machine within 0 s \(TimeoutError\).*run `digpro doctor`"),
    ],
)
def test_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    import ray

    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ConfigError, match=said) as caught:
        connect()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [{"ray_version": "2.50.0"}, {"python_version": "3.12.4"}])
def test_a_cluster_of_other_versions_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    import ray
    from ray._private.utils import check_version_info, compute_version_info

    def init(**_: object) -> None:
        check_version_info(
            dict(zip(("ray_version", "python_version"), compute_version_info(), strict=True)) | other, "me"
        )

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster, "ray_answers", lambda *_, **__: True)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    version = "".join(other.values())
    with pytest.raises(
        ConfigError, match=rf"at 10\.0\.0\.1:6379 has different versions.*{version}.*constraints"
    ) as caught:
        connect()
    assert "\n" not in str(caught.value)


def test_a_cluster_that_is_gone_is_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`ray start` leaves its address behind; Ray would try to reach it for ever."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=auto finds no Ray cluster.* recorded, does not answer"):
        cluster_address()


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"):
        monkeypatch.setenv(name, "")
    unset_empty_variables()
    assert "RAY_ADDRESS" not in os.environ
    assert "RAY_TMPDIR" not in os.environ
    assert "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S" not in os.environ


def test_a_machine_that_cannot_run_ray_is_refused_before_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("")
    script = "import sys; sys.path.remove(''); from pipeline.cluster import connect; connect()"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert f"workers would import {tmp_path}/queue.py instead of the library 'queue'; rename it" in done.stderr


@pytest.mark.slow
def test_an_address_without_a_cluster_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "doctor"]
    wrong = os.environ | {"RAY_ADDRESS": "auto", "RAY_TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=wrong, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "RAY_ADDRESS=auto finds no Ray cluster on this machine: none was started here" in done.stderr


@pytest.mark.slow
def test_a_cluster_of_our_own_leaves_no_token_behind(tmp_path: Path) -> None:
    """Ray writes one into the home folder; here that cannot even be written."""
    (tmp_path / "home").touch()
    script = """
        import os, ray
        from pipeline.cluster import connect
        connect()
        from ray.util.state import list_nodes
        list_nodes(address=ray.get_runtime_context().gcs_address)
        asked = ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"] == os.environ["OTHER"])
        mine = {"env_vars": {"OTHER": os.environ["RAY_AUTH_TOKEN"]}}
        print(ray.get(asked.options(runtime_env=mine).remote()))
        print(ray._raylet.get_authentication_mode() == ray._raylet.AuthenticationMode.TOKEN)
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=ours | {"HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.parametrize("before", [None, "http://elsewhere:8265"])
def test_a_cluster_of_our_own_knows_its_dashboard(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other clusters on the machine, Ray Train could not free the places of a trial that was stopped."""
    monkeypatch.delenv(DASHBOARD, raising=False)
    if before:
        monkeypatch.setenv(DASHBOARD, before)
    with own_cluster() as options:
        assert os.environ[DASHBOARD] == f"http://127.0.0.1:{options['dashboard_port']}"
    assert os.environ.get(DASHBOARD) == before
