"""The speed of two workers, and of one worker with two threads, over one with a single thread, on one global batch.

    python -m benchmarks.workers                                       # ResNet-18, batch 32
    python -m benchmarks.workers --preset digits --steps 10            # the demo: `tiny`, batch 128

Each worker is a process, connected by gloo as in a run; Ray and its feed are left out. The three ways take turns. The
claim: two workers with ResNet-18 are at least 1.5 times as fast as one. Exit status 1 when it does not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from benchmarks.measure import alternate, conclude, rate, speedup
from benchmarks.step import take_step
from pipeline.build import build_model, build_run_optimizer, data_parallel, settle_images
from pipeline.collectives import row_range
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.data.views import TwoViews

CLAIM, ENCODER, BATCH = 1.5, "resnet18", 32
CLUSTERS = 10
WARM_UP = 1  # step


class Stepper:
    """The training step of one worker, on synthetic images."""

    def __init__(self, config: RunConfig) -> None:
        device = torch.device("cpu")
        self.model = build_model(config, CLUSTERS, device)
        self.optimizer = build_run_optimizer(config, self.model)
        self.step_model = data_parallel(self.model)
        self.views = TwoViews(config.views, [0.5] * 3, [0.25] * 3, config.seed)
        self.rows, size = row_range(config.optim.batch_size), config.data.image_size
        assert size is not None
        self.images = torch.randint(0, 256, (self.rows.stop - self.rows.start, size, size, 3), dtype=torch.uint8)
        self.labels = torch.arange(self.rows.start, self.rows.stop) % CLUSTERS

    def __call__(self) -> Tensor:
        views = self.views(self.images, torch.arange(self.rows.start, self.rows.stop), 0)
        options = {"target_momentum": 0.99, "rows": self.rows}
        return take_step(self.step_model, self.optimizer, views, self.labels, None, **options)


class Way(NamedTuple):
    """Processes that train together, and the threads of each."""

    workers: int
    threads: int


WAYS = {"one": Way(1, 1), "one with two threads": Way(1, 2), "two": Way(2, 1)}


def serve(rank: int, way: Way, store: str, config: RunConfig, pipe: Connection) -> None:
    """Run as many steps as the parent asks for, again and again; answer with their seconds."""
    torch.set_num_threads(way.threads)
    if way.workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=way.workers)
    step = Stepper(config)
    while steps := pipe.recv():
        start = time.perf_counter()
        for _ in range(steps):
            step()
        pipe.send(time.perf_counter() - start)


class Group:
    """The processes of a way."""

    def __init__(self, way: Way, folder: Path, config: RunConfig) -> None:
        context = mp.get_context("spawn")
        self.pipes = []
        for rank in range(way.workers):
            ours, theirs = context.Pipe()
            args = (rank, way, str(folder / "store"), config, theirs)
            context.Process(target=serve, args=args, daemon=True).start()
            self.pipes.append(ours)

    def seconds(self, steps: int) -> float:
        """Of the slowest process."""
        for pipe in self.pipes:
            pipe.send(steps)
        return max(pipe.recv() for pipe in self.pipes)

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.send(0)


def compare(config: RunConfig, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of each round of each way, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        groups = {name: Group(way, Path(folder), config) for name, way in WAYS.items()}
        for group in groups.values():
            group.seconds(WARM_UP)
        seconds: dict[str, list[float]] = {name: [] for name in groups}
        for name in alternate(groups, rounds):
            seconds[name].append(groups[name].seconds(steps))
        for group in groups.values():
            group.close()
    ratio = speedup(seconds, of="two", over="one")
    holds = config.model.encoder != ENCODER or ratio >= CLAIM
    return {"ratio": ratio, "claim_holds": holds, "seconds": seconds}


def main() -> int:
    """Measure, print, and judge the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--batch", type=int, help="images per step over all workers; 32 for cifar10, else the preset's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="of a round")
    parser.add_argument("--set", action="append", default=[], help="a setting, as in `digpro train`")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    size = args.batch or (BATCH if args.preset == "cifar10" else None)
    batch = [f"optim.batch_size={size}"] if size else []
    config = settle_images(load_config(args.preset, [*batch, *args.set, "model.freeze=false"]))
    results = compare(config, args.rounds, args.steps)
    for name, seconds in results["seconds"].items():
        images = rate(args.steps * config.optim.batch_size, seconds)
        print(f"{name}: {images:,.1f} images/s, {speedup(results['seconds'], of=name, over='one'):.2f} times one")
    print(f"{'PASS' if results['claim_holds'] else 'FAIL'}  claim: two workers with ResNet-18 >= {CLAIM} times one")
    conclude(results, args.out)
    return 0 if results["claim_holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
