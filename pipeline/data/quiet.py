"""Hides what C and C++ libraries print: our own messages say what a user can act on."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator

CPP_LOG_LINE = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+ [A-Z] \d+ \d+\] \w+\.cc:\d+: ")
_ONE_AT_A_TIME = threading.Lock()  # the descriptor belongs to the whole process


@contextlib.contextmanager
def stderr_into(descriptor: int) -> Iterator[None]:
    """Redirect this process's stderr to another open file."""
    with _ONE_AT_A_TIME:
        kept = os.dup(2)
        os.dup2(descriptor, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def cpp_log_lines_hidden() -> Iterator[None]:
    """Hide log lines of Ray's C++ core inside the block; other lines appear when the block ends.

    The core writes to the driver's stderr whatever the level of Python's loggers, and has one level for all processes.
    """
    with tempfile.TemporaryFile() as held:
        try:
            with stderr_into(held.fileno()):
                yield
        finally:
            held.seek(0)
            os.write(2, b"".join(line for line in held if not CPP_LOG_LINE.match(line)))
