"""What the benchmarks share: timing that a busy machine can hardly bend.

Speeds on a shared machine drift by more than what is measured. So the things to compare take turns, in an order that
turns round each time, and every ratio is taken within a round; the median over the rounds is reported. One thread on
a CPU is timed by its own CPU time, which other jobs on the machine hardly touch.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.collectives import all_sum, world_size

Seconds = dict[str, list[float]]


def interleaved(blocks: Mapping[str, Callable[[], object]], rounds: int, device: torch.device | str = "cpu") -> Seconds:
    """Seconds of each block in each round; on several workers all call it, and the slowest counts."""
    device = torch.device(device)
    single = device.type == "cpu" and torch.get_num_threads() == 1 and world_size() == 1
    clock = time.process_time if single else time.perf_counter
    seconds: Seconds = {name: [] for name in blocks}
    for turn in range(rounds):
        for name in list(blocks)[:: -1 if turn % 2 else 1]:
            _wait(device)
            start = clock()
            blocks[name]()
            _wait(device)
            seconds[name].append(clock() - start)
    return seconds


def _wait(device: torch.device) -> None:
    """Until the device and the other workers have got here."""
    all_sum(torch.zeros(1, device=device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speedup(seconds: Seconds, of: str, over: str) -> float:
    """How many times faster block `of` is than block `over`: the median over the rounds."""
    return statistics.median(slow / fast for fast, slow in zip(seconds[of], seconds[over], strict=True))


def rate(count: int, seconds: list[float]) -> float:
    """Items per second in the median round."""
    return count / statistics.median(seconds)


def hardware() -> str:
    """Processor, cores, GPU, load and versions in a line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    load = f"load average {os.getloadavg()[0]:.1f}"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{_processor()}, {os.cpu_count()} cores, {gpu}, {load}, {versions}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")  # Linux only
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def conclude(results: dict[str, Any], out: Path | None) -> None:
    """Print the hardware, and write results and hardware as JSON where a file is given."""
    results["hardware"] = hardware()
    print(f"hardware: {results['hardware']}")
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
