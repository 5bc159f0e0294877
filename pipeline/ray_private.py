"""Every private or unstable name of Ray and MLflow that we use: why, and the version in which it was seen.

There is no public way to do these things. `tests/test_ray_private.py` fails when an upgrade changes one of them.
All were seen in Ray 2.60 and MLflow 3.17.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

UNWANTED_SECONDS = 0.5  # between steps of Ray Data's loop while nobody waits for a block
ERROR_LENGTH = 200  # characters of an error of Ray that are shown
# A warning of Ray's, in each search whose trials reserve parts of a CPU: nothing is wrong, and nothing can be done.
FRACTIONAL_CPUS = "PYTHON worker processes have been started on node"


MODEL_VERSIONS_TAG = "mlflow.modelVersions"  # on a LoggedModel: its versions in the registry; links both pages


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Inside, `ray.init` starts a cluster that listens on the loopback address.

    Ray does so on macOS and Windows; on Linux the switch is a private constant, read at start-up.
    """
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def address_file(temporary_folder: str) -> Path:
    """Where `ray start` records the address of this machine's cluster, to which `ray.init` connects by default.

    The file outlives the cluster, and connecting to an address where nothing answers takes minutes.
    """
    return Path(temporary_folder, "ray", "ray_current_cluster")


def ray_answers(target: str, *, client_server: bool, seconds: float, token: str) -> bool:
    """Whether the control store of a cluster, or the server of `ray://` clients, answers at host:port.

    `ray.init` has no timeout, and retries a refused connection for minutes. This makes the same call that `ray.init`
    begins with. With RAY_USE_TLS an open connection counts as an answer.

    Raises
    ------
    PermissionError
        When the cluster refuses the token, or requires one and `token` is empty.
    """
    import grpc

    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        host, _, port = target.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=seconds):
            return True
        return False
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            metadata = [("authorization", f"Bearer {token}")] if token else None
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=seconds, metadata=metadata)
            return True
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise PermissionError(error.details()) from None
            return client_server and error.code() is grpc.StatusCode.UNIMPLEMENTED


def session_socket(temporary_folder: str, process: int) -> str:
    """A path as long as that of the longest Unix socket that a cluster started by `process` would make."""
    return f"{temporary_folder}/ray/session_2026-01-01_00-00-00_000000_{process}/sockets/plasma_store"


def auth_token() -> tuple[str, str]:
    """The token that Ray would send to a cluster, and where it takes it from; an empty token where it finds none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token, "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):
        return file.read_text().strip(), str(file)
    return "", str(file)


def read_token_again() -> None:
    """Make Ray, which reads the token only once per process, read it again."""
    from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader

    AuthenticationTokenLoader.instance().reset_cache()


def send_token_if_there_is_one() -> None:
    """Make Ray send the token that it finds, unless RAY_AUTH_MODE says otherwise.

    Ray does so itself for a cluster that it looks for, but not when it is given the address.
    """
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def try_databases_once() -> None:
    """Make MLflow try a database once instead of ten times, which takes 100 s: our spool retries."""
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = 1


def mlflow_migrations() -> Path:
    """MLflow's database migration scripts; they name all schemas that this version knows."""
    import mlflow

    return Path(mlflow.__file__).parent / "store" / "db_migrations"


def logs_folder() -> Path:
    """Where the processes of the connected cluster write their logs on this machine."""
    from ray._private import worker

    return Path(worker.global_worker.node.get_logs_dir_path())


def on_node_with_room(node: str) -> dict[str, Any]:
    """Options that place an actor on a node, or on another one if that node has no room or is lost.

    The public affinity, which is called soft, waits for a node without room for ever, and Ray ignores it for an actor
    that takes no resource. Every node has a byte of memory.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)
    return {"scheduling_strategy": strategy, "memory": 1}


class PauseWhileUnwanted:
    """Keeps Ray Data's scheduling loop in this process from spinning; has the methods of Ray's `ExecutionCallback`.

    The loop waits only for tasks that have delivered nothing yet. While a consumer is slower than its readers there are
    none, and the loop takes a whole core of the consumer's process, and Python's lock. A class, not an instance, goes
    into `DataContext.custom_execution_callback_classes`, and Ray pickles it: so the event belongs to the process.
    """

    wanted = threading.Event()
    """Set while the consumer waits for a block."""

    def before_execution_starts(self, executor: object) -> None:
        """Nothing is paused yet."""

    def on_execution_step(self, executor: object) -> None:
        """Wait until a block is wanted, for `UNWANTED_SECONDS` at most: finished tasks are followed by others."""
        self.wanted.wait(UNWANTED_SECONDS)

    def after_execution_succeeds(self, executor: object) -> None:
        """Nothing is left."""

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        """Nothing is left."""


def leave_signals_alone(trainer: TorchTrainer) -> None:
    """Keep `trainer.fit` from handling Ctrl-C: its handler ends the process with status 1 and no message.

    Without that handler, `fit` raises KeyboardInterrupt like any other code, and cleanup code can run.
    """
    if not hasattr(trainer, "_register_sigint_handler"):
        raise AttributeError(
            "TorchTrainer has no _register_sigint_handler; this version of Ray handles Ctrl-C otherwise"
        )
    trainer._register_sigint_handler = lambda controller: None


def shorten_errors(ending: threading.Event) -> None:
    """Show the errors that Ray collects from the cluster as one line each, once, and none when `ending` is set.

    Ray prints each in full, every time it happens, and a page for a worker that died; `log_to_driver` does not affect
    them. Ctrl-C in a Ray Data pipeline kills its actors, and each of their tasks would print an error. Ray's printing
    thread calls a function of its module, which is replaced here.
    """
    from ray._private import worker

    shown = set[str]()

    def show_briefly(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        for message in data["lines"]:
            line = message.strip().partition("\n")[0].split(". ")[0][:ERROR_LENGTH]
            if not ending.is_set() and line not in shown and FRACTIONAL_CPUS not in line:
                shown.add(line)
                print(f"ray: {line} (more in Ray's logs)", file=sys.stderr)

    worker.print_to_stdstream = show_briefly


def walk_working_dir(root: Path, excludes: list[str], visit: Callable[[Path], None], logger: Logger) -> None:
    """Visit every file that `ray job submit` would send from `root`: all but `excludes` and what .gitignore lists.

    Ray itself measures the folder only while it uploads it, and then fails after minutes.
    """
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    excluded = _get_excludes(root, [*ray_constants.get_runtime_env_default_excludes(), *excludes])
    include_gitignore = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    _dir_travel(root, [excluded], visit, include_gitignore=include_gitignore, logger=logger)


def largest_upload() -> int:
    """Bytes that a dashboard takes in one request; a job's folder travels as one uncompressed zip file."""
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    return int(DASHBOARD_CLIENT_MAX_SIZE)


def cluster_versions(client: Any) -> tuple[str, str]:
    """Versions of Ray and Python on the cluster of a JobSubmissionClient; its `get_version` gives the API's version."""
    answer = client._do_request("GET", "/api/v0/cluster_metadata")
    if answer.status_code != 200:  # an old Ray
        return client._server_ray_version, "unknown"
    data = answer.json()["data"]
    return data["rayVersion"], data["pythonVersion"]


def record_error() -> type[Exception]:
    """The error of `ray.train.Result.from_path` for a damaged record of checkpoints; Ray Train does not export it."""
    from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError

    return CheckpointManagerInitializationError
