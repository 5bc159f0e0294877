"""Independent tasks: on Ray when it is initialised, otherwise one after the other in this process; and Ray's errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import RunFailed, UserError, first_line, user_error_in
from pipeline.memory import memory_shortage
from pipeline.storage import raise_storage_fault, storage_fault

TASKS_PER_CPU = 4  # waiting tasks keep CPUs busy, and make an autoscaler add nodes


def run_each(task: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Run `task` on every tuple of arguments, on Ray when it is initialised, and yield results as they come.

    `calls` is read as tasks end: no more than `TASKS_PER_CPU` tasks for each CPU of the cluster are pending.

    An error that a user can act on is raised as the task raised it, without the traceback that Ray adds.
    """
    waiting = iter(calls)
    first = list(itertools.islice(waiting, 2))
    waiting = itertools.chain(first, waiting)
    if len(first) <= 1 or not ray.is_initialized():
        yield from itertools.starmap(task, waiting)
        return
    remote = ray.remote(num_cpus=1)(task)
    pending: list[Any] = []
    try:
        while True:
            pending += [remote.remote(*call) for call in itertools.islice(waiting, _room(len(pending)))]
            if not pending:
                return
            ready, pending = ray.wait(pending)
            yield _result(ready[0])
    finally:
        for reference in pending:  # after an error or a closed generator: stop what is no longer needed
            ray.cancel(reference)


def _room(pending: int) -> int:
    """How many more tasks the cluster may have now; its size is looked up each time, since clusters grow and shrink."""
    cpus = int(ray.cluster_resources().get("CPU", 0))
    return max(TASKS_PER_CPU * max(cpus, 1) - pending, 0)


def own_error(error: RayError, what: str, place: str) -> UserError:
    """Our own error, if Ray wrapped one; else one that says in a line what failed, and why.

    `place` is the folder that keeps the finished work, so that the same command continues.
    """
    kept = f"finished work is kept in {place}, and the same command continues"
    why = memory_shortage(error) or storage_fault(error) or first_line(error)
    return user_error_in(error) or RunFailed(f"{what} ({why}); {kept}")


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise_storage_fault(error)
        raise
