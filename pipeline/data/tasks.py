"""Independent tasks: on Ray when it is initialised, otherwise one after the other in this process; and Ray's errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import RunFailed, UserError, first_line
from pipeline.memory import memory_shortage


def run_each(task: Callable[..., Any], calls: list[tuple[Any, ...]]) -> Iterator[Any]:
    """Run `task` on every tuple of arguments, on Ray when it is initialised, and yield results as they come.

    An error that a user can act on is raised as the task raised it, without the traceback that Ray adds.
    """
    if len(calls) <= 1 or not ray.is_initialized():
        yield from itertools.starmap(task, calls)
        return
    remote = ray.remote(num_cpus=1)(task)
    pending = [remote.remote(*arguments) for arguments in calls]
    try:
        while pending:
            ready, pending = ray.wait(pending)
            yield _result(ready[0])
    finally:
        for reference in pending:  # after an error or a closed generator: stop what is no longer needed
            ray.cancel(reference)


def own_error(error: RayError, what: str, place: str) -> UserError:
    """The error of ours that Ray wrapped; or one that says what failed, and why in a line.

    `place` is the folder that keeps what is done, so that the same command continues.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = getattr(cause, "cause", None) or cause.__cause__
    kept = f"what is in {place} is kept, and the same command continues"
    return cause or RunFailed(f"{what} ({memory_shortage(error) or first_line(error)}); {kept}")


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
