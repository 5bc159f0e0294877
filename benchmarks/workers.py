"""Steps of two workers over steps of one on the same global batch, as the preset digits trains.

    python -m benchmarks.workers                    # the demo: `tiny`, batch 128
    python -m benchmarks.workers --preset cifar10 --batch 64

Each worker is a process with one thread, connected by gloo as in a run; Ray and its feed are left out. A single process
and a pair take turns. The claim: two workers are at least 1.5 times as fast as one. Exit status 1 when not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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

CLAIM = 1.5
CLUSTERS = 10
WARM_UP = 3  # steps


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


def serve(rank: int, world: int, store: str, config: RunConfig, pipe: Connection) -> None:
    """Take as many steps as the parent asks for, again and again; answer with their seconds."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    step = Stepper(config)
    while steps := pipe.recv():
        start = time.perf_counter()
        for _ in range(steps):
            step()
        pipe.send(time.perf_counter() - start)


class Group:
    """Processes that train together."""

    def __init__(self, world: int, folder: Path, config: RunConfig) -> None:
        context = mp.get_context("spawn")
        self.pipes = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            args = (rank, world, str(folder / f"store-{world}"), config, theirs)
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


def compare(config: RunConfig, workers: int, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of each round of one worker and of several, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        groups = {name: Group(n, Path(folder), config) for name, n in (("one", 1), ("several", workers))}
        for group in groups.values():
            group.seconds(WARM_UP)
        seconds: dict[str, list[float]] = {name: [] for name in groups}
        for name in alternate(groups, rounds):
            seconds[name].append(groups[name].seconds(steps))
        for group in groups.values():
            group.close()
    ratio = speedup(seconds, of="several", over="one")
    return {"ratio": ratio, "claim_holds": ratio >= CLAIM, "seconds": seconds}


def main() -> int:
    """Measure, print, and judge the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--batch", type=int, help="images per step over all workers; the preset's")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--set", action="append", default=[], help="a setting, as in `digpro train`")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    batch = [f"optim.batch_size={args.batch}"] if args.batch else []
    config = settle_images(load_config(args.preset, [*batch, *args.set, "model.freeze=false"]))
    results = compare(config, args.workers, args.rounds, args.steps)
    images = args.steps * config.optim.batch_size
    one, several = (rate(images, results["seconds"][name]) for name in ("one", "several"))
    verdict = "PASS" if results["claim_holds"] else "FAIL"
    print(
        f"{args.workers} workers {several:,.0f} / one {one:,.0f} images/s = {results['ratio']:.2f}  "
        f"{verdict} (claim: >= {CLAIM})"
    )
    conclude(results, args.out)
    return 0 if results["claim_holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
