"""Keeps what is known about a failure in the run's folder: workers' logs stay on their nodes, which may be gone."""

from __future__ import annotations

import contextlib

from ray.exceptions import RayActorError
from ray.util.state import get_log

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
    """The end of an actor process's standard error, or why it is not available if its node is gone."""
    try:
        return "".join(get_log(actor_id=actor, suffix="err", tail=LINES, timeout=ANSWER_SECONDS, errors="replace"))
    except Exception as error:
        return f"not available: {error}"
