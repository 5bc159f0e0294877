"""Keeping off the screen what C libraries print about damaged images; our own messages name the image as well."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

_ONE_AT_A_TIME = threading.Lock()  # the descriptor belongs to the whole process


@contextlib.contextmanager
def stderr_into(descriptor: int) -> Iterator[None]:
    """Send what this process writes to its stderr into another open file."""
    with _ONE_AT_A_TIME:
        kept = os.dup(2)
        os.dup2(descriptor, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
