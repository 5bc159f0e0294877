"""Time to the first batch of a stream that resumes late in an epoch, over the time at the start of the epoch.

    python -m benchmarks.resume                            # 60,000 images of 32 pixels, in windows of 24,576
    python -m benchmarks.resume --data SHARDS --set data.image_size=8 --set views.size=8

Windows that covered the epoch would make the claim an easy one: every start would read all images. So would smaller
ones: a worker itself reads the first 24 MiB, and these windows have 72 MiB, for which Ray Data's processes start. Each
start is a new process, as after a kill: it opens the stream at its step and takes one batch. Starts at the first step
and at `--late` of the epoch take turns. The claim: late / start <= 1.2. Exit status 1 when it does not hold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.measure import alternate, conclude, speedup
from benchmarks.pipeline import open_shards
from pipeline.build import settle_images
from pipeline.cluster import connect
from pipeline.config.loading import load_config
from pipeline.data.loader import Inputs
from pipeline.plan import make_plan
from pipeline.runs.identity import run_folder
from pipeline.tracking import open_run
from pipeline.training.images import image_source
from pipeline.training.job import Job

CLAIM = 1.2
WINDOW = 24_576


@ray.remote(num_cpus=1)
class Start:
    """The only worker of a run; its process and its readers end when it is killed."""

    def seconds_to_first_batch(self, job: Job, step: int) -> float:
        """Open the stream at a step of the first epoch, and take a batch."""
        began, device = time.perf_counter(), torch.device("cpu")
        next(Inputs(job.plan.order, image_source(job, device), device).epoch(0, step))
        return time.perf_counter() - began


def make_job(args: argparse.Namespace, folder: Path) -> Job:
    """A job that streams the given shards, or synthetic images."""
    path, manifest = open_shards(args.data, folder, args.images)
    own = ["name=resume", f"storage={folder / 'runs'}", f"data.path={path}", "tracking.enabled=false"]
    streamed = ["data.mode=streaming", f"data.shuffle_window={WINDOW}"]
    config = settle_images(load_config("cifar10", [*own, *streamed, *args.set]))
    return Job(
        config, manifest, make_plan(config, manifest), open_run(config, run_folder(config).make()), reading_cpus=0.0
    )


def main() -> int:
    """Measure starts at both steps in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000, help="number of synthetic images")
    parser.add_argument("--data", help="folder of shards to use instead of synthetic images")
    parser.add_argument("--late", type=float, default=0.7, help="share of the epoch that is done at the late start")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(args, Path(folder))
        connect()
        steps = {"start": 0, "late": int(args.late * job.plan.steps_per_epoch)}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for name in alternate(steps, args.rounds):
            start = Start.remote()  # type: ignore[attr-defined]
            seconds[name].append(ray.get(start.seconds_to_first_batch.remote(job, steps[name])))
            ray.kill(start)
    ratio = speedup(seconds, of="start", over="late")
    results: dict[str, Any] = {"steps": steps, "seconds": seconds, "ratio": ratio, "claim_holds": ratio <= CLAIM}
    at = ", ".join(f"step {steps[name]}: {statistics.median(seconds[name]):.2f} s" for name in steps)
    print(f"{job.manifest.num_images:,} images, {job.plan.steps_per_epoch} steps; {at}")
    print(f"late / start = {ratio:.2f}  {'PASS' if ratio <= CLAIM else 'FAIL'} (claim: <= {CLAIM})")
    conclude(results, args.out)
    return 0 if results["claim_holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
