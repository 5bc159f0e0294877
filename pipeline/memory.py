"""Where memory ran out, in one line: on a node (reported by Ray), a device (torch) or in a process (Python)."""

from __future__ import annotations

import re

from pipeline.errors import first_line

# Ray ends processes before the kernel would, and says so in fifty lines.
_NODE = re.compile(r"low on memory\. Memory on the node \(IP: ([^,)]+).*? was ([\d.]+GB) used / ([\d.]+GB) limit")
_USER = re.compile(r"^\d+\t([\d.]+)\t(\S+)", re.MULTILINE)  # process, GB, command
_DEVICE = re.compile(r"(?:CUDA|HIP) out of memory.*|.*can't allocate memory.*")
USERS = 3  # processes that are named


def memory_shortage(error: BaseException) -> str | None:
    """How memory ran out, and which processes held most of it; None for any other error.

    A worker may raise such an error itself, or Ray may end it together with the processes that would have reported it.
    """
    text = str(error)
    if node := _NODE.search(text):
        address, used, limit = node.groups()
        users = ", ".join(f"{name} {float(held):.1f} GB" for held, name in _USER.findall(text)[:USERS])
        line = f"node {address} ran low on memory ({used} of {limit} in use), and Ray ended processes of this run there"
        return f"{line}; the largest processes are {users}" if users else line
    if device := _DEVICE.search(text):
        return device[0]
    return f"no memory left: {first_line(error)}" if isinstance(error, MemoryError) else None
