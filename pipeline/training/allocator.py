"""How the C library hands out memory for a network's activations on a CPU."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
LARGE = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Keep freed memory for the next step; False where the C library is not glibc.

    By default glibc returns blocks of 32 MiB and more to the system at once, and the next step gets new ones, zeroed
    page by page. This takes a fifth of a step with activations of that size (`python -m benchmarks.step --encoder tiny
    --batch 128`).
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    return bool(libc.mallopt(M_TRIM_THRESHOLD, LARGE) and libc.mallopt(M_MMAP_THRESHOLD, LARGE))
