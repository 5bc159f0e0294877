"""How many threads a worker computes with."""

from __future__ import annotations

import ray
import torch


def use_given_cpus() -> int:
    """Have PyTorch compute with as many threads as Ray gave this worker CPUs, at least one; returns the number.

    Ray does the same with OMP_NUM_THREADS, but leaves a value alone that it finds: `ray up`, for one, exports 1 to
    every command, and with it all workers of a cluster would compute with one thread.
    """
    threads = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    torch.set_num_threads(threads)
    return threads
