"""Keeps what is known about a failure in the run's folder: workers' logs stay on their nodes, which may be gone."""

from __future__ import annotations

import contextlib

import ray
from ray.exceptions import RayActorError
from ray.util.state import get_actor, get_log

from pipeline.ray_private import logs_folder
from pipeline.storage import Folder
from pipeline.training.fit import worker_errors

FAILURE = "failure.txt"
LINES = 200  # of a log, at most
ANSWER_SECONDS = 10


def keep_failure(folder: Folder, error: Exception) -> str:
    """Write the tracebacks of an error, and the last lines of workers that died; returns a clause that says where."""
    sections = [str(error)]
    for rank, cause in worker_errors(error).items():
        if isinstance(cause, RayActorError) and cause.actor_id:
            sections.append(f"The last lines of worker {rank}:\n{_last_lines(cause.actor_id)}")
    with contextlib.suppress(OSError):  # a full disk must not hide what happened
        folder.write_bytes(FAILURE, "\n\n".join(sections).encode())
        return f"; tracebacks and workers' last lines are in {folder.file(FAILURE)}"
    return ""


def _last_lines(actor: str) -> str:
    """The end of an actor process's standard error, or why it is not available if its node is gone.

    From a process of this node it is read from the file: `get_log` needs Ray's agent, which is not registered in
    clusters of our own.
    """
    try:
        context = ray.get_runtime_context()
        state = get_actor(actor, address=context.gcs_address, timeout=ANSWER_SECONDS)
        if state is not None and state.node_id == context.get_node_id():
            (file,) = logs_folder().glob(f"worker-*-{state.pid}.err")
            return "".join(file.read_text(errors="replace").splitlines(keepends=True)[-LINES:])
        chosen = {"address": context.gcs_address, "actor_id": actor, "suffix": "err", "tail": LINES}
        return "".join(get_log(**chosen, timeout=ANSWER_SECONDS, errors="replace"))
    except Exception as error:
        return f"not available: {error}"
