"""Timing for all benchmarks, robust on a busy machine.

Speeds on a shared machine drift by more than the differences to be measured. So the blocks to compare alternate, in an
order that is reversed each round, and every ratio is taken within a round; the median over the rounds is reported. A
single thread on a CPU is timed by its own CPU time, which other processes hardly affect.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.collectives import all_sum, world_size

Seconds = dict[str, list[float]]


def time_interleaved(
    blocks: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str = "cpu",
    *,
    prepare: Callable[[], object] = lambda: None,
) -> Seconds:
    """Seconds of each block in each round. With several workers, all call it and the slowest determines the time.

    `prepare` is called before each block, and not timed.
    """
    device = torch.device(device)
    single = device.type == "cpu" and torch.get_num_threads() == 1 and world_size() == 1
    clock = time.process_time if single else time.perf_counter
    seconds: Seconds = {name: [] for name in blocks}
    for name in alternate(blocks, rounds):
        prepare()
        _synchronize(device)
        start = clock()
        blocks[name]()
        _synchronize(device)
        seconds[name].append(clock() - start)
    return seconds


def alternate(names: Iterable[str], rounds: int) -> Iterator[str]:
    """The names in turns, in an order that is reversed each round."""
    order = list(names)
    for _ in range(rounds):
        yield from order
        order.reverse()


def _synchronize(device: torch.device) -> None:
    """Wait until the device and the other workers have reached this point."""
    all_sum(torch.zeros(1, device=device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speedup(seconds: Seconds, of: str, over: str) -> float:
    """How many times faster block `of` is than block `over`: the median over the rounds."""
    return statistics.median(ratios(seconds, of, over))


def ratios(seconds: Seconds, of: str, over: str) -> list[float]:
    """How many times faster block `of` was than block `over`, in each round."""
    return [slow / fast for fast, slow in zip(seconds[of], seconds[over], strict=True)]


def rate(count: int, seconds: list[float]) -> float:
    """Items per second in the median round."""
    return count / statistics.median(seconds)


def hardware() -> str:
    """Processor, cores, GPU, load and versions in one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    load = f"load average {os.getloadavg()[0]:.1f}"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{_processor_name()}, {os.cpu_count()} cores, {gpu}, {load}, {versions}"


def _processor_name() -> str:
    path = Path("/proc/cpuinfo")  # Linux only
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def conclude(results: dict[str, Any], out: Path | None) -> None:
    """Print the hardware; if a file is given, write results and hardware to it as JSON."""
    results["hardware"] = hardware()
    print(f"hardware: {results['hardware']}")
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
