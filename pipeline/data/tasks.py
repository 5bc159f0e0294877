"""Independent tasks: on Ray when it is initialised, otherwise one after the other in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ray


def run_each(task: Callable[..., Any], calls: list[tuple[Any, ...]]) -> Iterator[Any]:
    """Run `task` on every tuple of arguments, on Ray when it is there, and yield the results as they come."""
    if len(calls) <= 1 or not ray.is_initialized():
        yield from itertools.starmap(task, calls)
        return
    remote = ray.remote(num_cpus=1)(task)
    pending = [remote.remote(*arguments) for arguments in calls]
    try:
        while pending:
            ready, pending = ray.wait(pending)
            yield ray.get(ready[0])
    finally:
        for reference in pending:  # an error or a closed generator: stop what was not asked for any more
            ray.cancel(reference)
