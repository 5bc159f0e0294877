"""How the C library hands out memory for a network's activations on a CPU."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGE = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Have freed memory kept for the next step; False where the C library is not glibc.

    By default glibc returns blocks of 32 MiB and more to the system at once, and takes them anew, zeroed page by page:
    a fifth of the time of a step whose activations are that large (`python -m benchmarks.step --encoder tiny --batch
    128`).
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    return bool(libc.mallopt(M_TRIM_THRESHOLD, LARGE) and libc.mallopt(M_MMAP_THRESHOLD, LARGE))
