"""Large blocks of memory stay with the process."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, torch
from pipeline.training.allocator import keep_freed_memory
if {kept}:
    assert keep_freed_memory()
x = torch.ones(1 << 24)  # 64 MiB
del x
print(torch.empty(1 << 24).data_ptr(), int(open("/proc/self/statm").read().split()[1]) * 4096)
"""


def _resident_after_freeing(kept: bool) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(kept=kept)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[1])


def test_what_was_freed_is_still_there_for_the_next_block() -> None:
    assert _resident_after_freeing(kept=True) > _resident_after_freeing(kept=False) + (50 << 20)
