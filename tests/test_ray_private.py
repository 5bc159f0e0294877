"""Every private name that we use exists and does what we say, so that an upgrade of Ray or MLflow fails here first."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import logging
import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from ray import JobID

from pipeline import ray_private
from tests.helpers.images import put


def test_the_loopback_switch_is_read_at_start_up() -> None:
    from ray._private import ray_constants, services

    before = ray_constants.ENABLE_RAY_CLUSTER
    with ray_private.loopback_only():
        assert ray_constants.ENABLE_RAY_CLUSTER is False
        assert services.get_node_ip_address() == "127.0.0.1"
    assert ray_constants.ENABLE_RAY_CLUSTER is before


def test_an_affinity_can_be_given_up_where_there_is_no_room() -> None:
    """What Ray makes of it is tested with several nodes, in `tests/chaos/test_unequal_nodes.py`."""
    options = ray_private.on_node_with_room("ab" * 28)
    placed = options["scheduling_strategy"]
    assert (placed.node_id, placed.soft, placed._spill_on_unavailable) == ("ab" * 28, True, True)
    assert options["memory"] > 0  # else Ray would place it anywhere


def test_ray_looks_for_a_started_cluster_where_we_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray._private.utils import read_ray_address

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    file = ray_private.address_file(str(tmp_path))
    file.parent.mkdir()
    file.write_text("10.0.0.1:6379")
    assert read_ray_address() == "10.0.0.1:6379"


def test_ray_takes_its_token_from_where_we_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray._raylet import AuthenticationTokenLoader

    def both() -> tuple[str, tuple[str, str]]:
        ray_private.read_token_again()
        return AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True), ray_private.auth_token()

    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    default, other = tmp_path / ".ray" / "auth_token", tmp_path / "other"
    assert both() == ("", ("", str(default)))
    put(default, b"a" * 32 + b"\n")
    assert both() == ("a" * 32, ("a" * 32, str(default)))
    put(other, b"b" * 32)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert both() == ("b" * 32, ("b" * 32, str(other)))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "c" * 32)
    assert both() == ("c" * 32, ("c" * 32, "RAY_AUTH_TOKEN"))
    monkeypatch.undo()
    ray_private.read_token_again()


def test_the_largest_upload_is_that_of_the_dashboard() -> None:
    from ray.dashboard import http_server_head

    assert ray_private.largest_upload() == 100 * 2**20
    assert "client_max_size=ray_constants.DASHBOARD_CLIENT_MAX_SIZE" in inspect.getsource(http_server_head)


def test_sockets_are_in_a_session_folder_of_this_form(tmp_path: Path) -> None:
    from ray._private import node, utils

    source = inspect.getsource(node)
    assert '"sockets"' in source
    assert '"plasma_store"' in source
    assert "session_{date_str}_{os.getpid()}" in source
    assert '"%Y-%m-%d_%H-%M-%S_%f"' in source
    with pytest.raises(OSError, match="cannot exceed"):
        utils.validate_socket_filepath("/" + "x" * 107)
    utils.validate_socket_filepath("/" + "x" * 102)


def test_mlflow_reads_how_often_it_tries_a_database_where_we_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.db import utils

    tries: list[object] = []

    def refuse(engine: object) -> NoReturn:
        tries.append(engine)
        raise ConnectionError("away")

    monkeypatch.setattr(utils, "MAX_RETRY_COUNT", utils.MAX_RETRY_COUNT)
    monkeypatch.setattr(utils.sqlalchemy, "inspect", refuse)
    ray_private.try_databases_once()
    with pytest.raises(ConnectionError):
        utils.create_sqlalchemy_engine_with_retry("sqlite://")
    assert len(tries) == 1


def test_mlflow_links_models_and_versions_by_this_tag() -> None:
    from mlflow.utils import mlflow_tags

    assert mlflow_tags.MLFLOW_MODEL_VERSIONS == ray_private.MODEL_VERSIONS_TAG
    assert (ray_private.mlflow_migrations() / "versions").is_dir()


PACKAGE = Path(ray_private.__file__).parent


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_private_modules_are_imported_in_one_place(file: Path) -> None:
    """Also MLflow's stores, which it changes as it likes."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    private = {name for name in names if re.match(r"(ray|mlflow|torch)\.(.*\.)?_[a-z]|mlflow\.(store|utils)\b", name)}
    assert file.name == "ray_private.py" or not private


def test_a_trainer_can_leave_ctrl_c_alone() -> None:
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(lambda: None)
    ray_private.leave_signals_alone(trainer)
    trainer._register_sigint_handler(None)  # Ray's own would replace the handler of Ctrl-C
    with pytest.raises(AttributeError, match="this version of Ray"):
        ray_private.leave_signals_alone(object())


def test_errors_of_the_cluster_are_one_line_each_and_none_once_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)  # put back afterwards
    died = "A worker died or was killed by an unexpected system error. To troubleshoot ...\n" + "page\n" * 50
    many = "WARNING: 12 PYTHON worker processes have been started on node: 02db with address: 127.0.0.1, ..."
    errors = iter([{"job_id": None, "error_message": text} for text in ("full disk", died, many, died, "dead actor")])
    ending, stopped = threading.Event(), threading.Event()

    class Subscriber:
        polls = 0

        def subscribe(self) -> None: ...

        def poll(self) -> tuple[bytes, dict[str, object]]:
            self.polls += 1
            if self.polls == 5:
                ending.set()
                stopped.set()
            return b"", next(errors)

    ray_private.shorten_errors(ending)
    driver = SimpleNamespace(gcs_error_subscriber=Subscriber(), current_job_id=JobID.nil())
    worker.listen_error_messages(driver, stopped)
    assert next(errors, None) is None
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "ray: full disk (more in Ray's logs)",
        "ray: A worker died or was killed by an unexpected system error (more in Ray's logs)",
    ]


def test_the_working_directory_is_walked_as_ray_walks_it(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("ignored\n")
    for name in ("ignored", "kept", "excluded/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list[Path]()
    ray_private.walk_working_dir(tmp_path, ["excluded"], found.append, logging.getLogger("test"))
    assert {str(path.relative_to(tmp_path)) for path in found if path.is_file()} == {".gitignore", "kept"}


def test_a_damaged_record_of_checkpoints_has_its_own_error() -> None:
    assert issubclass(ray_private.record_error(), Exception)


@pytest.mark.slow
def test_a_cluster_answers_the_question_of_ray_answers() -> None:
    import ray

    from pipeline.cluster import connect

    connect()
    try:
        address = ray.get_runtime_context().gcs_address
        token = ray_private.auth_token()[0]
        assert ray_private.ray_answers(address, client_server=False, seconds=5, token=token)
        for wrong in ("", "f" * 32):
            with pytest.raises(PermissionError):
                ray_private.ray_answers(address, client_server=False, seconds=5, token=wrong)
        session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
        assert ray_private.logs_folder() == session / "logs"
        assert (
            ray_private.session_socket(str(session.parents[1]), os.getpid()).count("/") == str(session).count("/") + 2
        )
    finally:
        ray.shutdown()
    assert not ray_private.ray_answers(address, client_server=False, seconds=5, token=token)


def test_the_pause_has_the_methods_that_ray_data_calls() -> None:
    from ray.data import DataContext
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    assert "custom_execution_callback_classes" in {field.name for field in dataclasses.fields(DataContext)}
    for name, theirs in vars(ExecutionCallback).items():
        if not name.startswith("_"):
            ours = getattr(ray_private.PauseWhileUnwanted, name)
            assert inspect.signature(ours).parameters.keys() == inspect.signature(theirs).parameters.keys()


def test_a_step_waits_only_while_nobody_waits_for_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_private, "UNWANTED_SECONDS", 30.0)
    pause = ray_private.PauseWhileUnwanted()
    pause.wanted.set()
    pause.on_execution_step(None)
    pause.wanted.clear()
    step = threading.Thread(target=pause.on_execution_step, args=(None,))
    step.start()
    step.join(0.2)
    assert step.is_alive()
    pause.wanted.set()
    step.join(5)
    assert not step.is_alive()
