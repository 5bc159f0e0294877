"""How many threads a worker computes with."""

from __future__ import annotations

import ray
import torch


def use_given_cpus() -> int:
    """Let PyTorch use as many threads as Ray gave this worker CPUs, at least one; returns the number.

    Ray does the same with OMP_NUM_THREADS, but keeps an existing value. `ray up`, for example, exports 1 to every
    command, so all workers of its clusters would compute with one thread.
    """
    threads = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    torch.set_num_threads(threads)
    return threads
