"""Images/s of training fed by Ray Data over images/s of the bare step on data in memory, in one run.

    python -m benchmarks.pipeline                   # ResNet-18
    python -m benchmarks.pipeline --encoder tiny    # a stress test of the feed
    python -m benchmarks.pipeline --jpeg 224        # JPEG images of about 280 pixels, fed at 224

The shapes are those of the preset cifar10, on synthetic images unless --data names a folder of shards. In each worker
two blocks of the same steps alternate. `bare` trains on batches that are already on the device. `fed` trains on a whole
epoch of `inputs.epoch`. A stream has read ahead all it may when a block begins, and reads as many images during `fed`
as that uses: Ray Data's processes read all of them, in tasks of a batch. The claims: fed / bare >= 0.97 in both modes;
and fed in streaming mode / fed in resident mode >= 0.9, because what a stream does beside the steps slows the bare
ones, too. Exit status 1 when one does not hold. How long the first batch is waited for is measured by
`benchmarks.first_batch`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer

from benchmarks.jpegs import write_jpegs
from benchmarks.measure import conclude, rate, speedup, time_interleaved
from pipeline.build import settle_images
from pipeline.checks.capacity import worker_resources
from pipeline.checks.nodes import node_resources
from pipeline.cluster import connect
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.data import streaming
from pipeline.data.ingest import ingest
from pipeline.data.loader import Batch
from pipeline.data.read import with_row_groups
from pipeline.data.shards import Manifest, read_manifest
from pipeline.data.streaming import StreamedImages
from pipeline.plan import image_bytes, make_plan
from pipeline.runs.identity import run_folder
from pipeline.storage import absolute
from pipeline.tracking import open_run
from pipeline.training.job import Job
from pipeline.training.mstep import train_step
from pipeline.training.run import Run, build_run
from pipeline.training.state import PseudoLabels

FED_CLAIM, STREAMING_CLAIM = 0.97, 0.9
LEAST_DELIVERED = 0.9  # images that a stream must deliver during `fed`, of those that are used: or nothing is measured
PRECISION_STEPS = 4  # per block when comparing float32 with bfloat16
DEFAULT_IMAGES = {"tiny": 8192}  # a fed block takes about ten seconds; 512 for ResNets


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Time the blocks; runs in each Ray Train worker."""
    read_by_others(settings["job"])
    run, rounds, epochs = build_run(settings["job"]), settings["rounds"], itertools.count(1)
    groups = run.state.model.groups.features
    device, own = groups.device, run.feed.inputs.own
    labels = torch.arange(own.start, own.stop, device=device, dtype=torch.int32) % len(groups)
    run.state.pseudo = PseudoLabels(labels, groups, own)
    run.step_model.train()
    in_memory = list(run.feed.inputs.epoch(0))
    train_on(run, in_memory[:2])  # warm-up: the first steps allocate
    delivered: list[float] = []
    seconds = time_interleaved(
        {"bare": lambda: train_on(run, in_memory), "fed": lambda: delivered.append(train_fed(run, next(epochs)))},
        rounds,
        device,
        prepare=lambda: wait_until_full(run),
    )
    peaks = peak_memory_gib(device)
    few = in_memory[:PRECISION_STEPS]
    precisions = time_interleaved(
        {str(d): partial(train_on, run, few, d) for d in (torch.float32, torch.bfloat16)}, rounds, device
    )
    return {
        "images": len(in_memory) * run.job.config.optim.batch_size,
        "seconds": seconds,
        "delivered": min(delivered),
        "bfloat16_speedup": speedup(precisions, of="torch.bfloat16", over="torch.float32"),
        **peaks,
    }


def read_by_others(job: Job) -> None:
    """Have Ray Data's processes read all images in small tasks, so that they are busy while `fed` is timed."""
    streaming.FEW_BYTES, streaming.BLOCK_BYTES = 0, job.config.optim.batch_size * image_bytes(job.config)


def wait_until_full(run: Run) -> None:
    """Wait until a stream has read ahead all it may, so that `bare` runs alone and `fed` reads as much as it uses."""
    before = -1
    while (now := read_ahead(run)) != before:
        before = now
        time.sleep(1)


def read_ahead(run: Run) -> int:
    """Images that a stream has read ahead; 0 where they are in memory."""
    source = run.feed.inputs.source
    return source.stream.waiting if isinstance(source, StreamedImages) and source.stream else 0


def train_fed(run: Run, epoch: int) -> float:
    """Train on the batches of an epoch; returns the images that a stream delivered meanwhile, as a share of its own."""
    before = read_ahead(run)
    train_on(run, run.feed.inputs.epoch(epoch))
    return 1 + (read_ahead(run) - before) / run.feed.inputs.own.size


def train_on(run: Run, batches: Iterable[Batch], precision: torch.dtype | None = None) -> None:
    """Run real training steps, counted from step 0, in the run's own precision unless another is given."""
    model, original = run.state.model, run.state.model.autocast
    if precision is not None:
        model.autocast = None if precision == torch.float32 else precision
    run.state.step = 0
    for batch in batches:
        train_step(run, batch)
    model.autocast = original


def peak_memory_gib(device: torch.device) -> dict[str, float]:
    """Peak resident set of this worker and, on CUDA, peak memory allocated; in GiB."""
    peaks = {"worker_peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if device.type == "cuda":
        peaks["gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return peaks


def measure_mode(mode: str, config: RunConfig, manifest: Manifest, rounds: int) -> dict[str, Any]:
    """Run `measure` in the workers of a TorchTrainer; rank 0's result, with the ratio fed / bare."""
    config = config.model_copy(update={"name": mode, "data": config.data.model_copy(update={"mode": mode})})
    job = Job(config, manifest, make_plan(config, manifest), open_run(config, run_folder(config).make()))
    scaling = worker_resources(config, mode, node_resources()).scaling(config.resources)
    result = TorchTrainer(
        measure,
        train_loop_config={"job": job, "rounds": rounds},
        scaling_config=scaling,
        run_config=RayRunConfig(name=mode, storage_path=config.storage),
    ).fit()
    timed: dict[str, Any] = result.return_value
    if timed["delivered"] < LEAST_DELIVERED:
        raise SystemExit(f"a stream delivered {timed['delivered']:.0%} of the images while they were used; too few")
    timed |= {name: rate(timed["images"], timed["seconds"][name]) for name in ("bare", "fed")}
    ratio = speedup(timed["seconds"], of="fed", over="bare")
    return {"ratio": ratio, "claim_holds": ratio >= FED_CLAIM, **timed}


def print_result(mode: str, result: dict[str, Any]) -> None:
    """Print the result of a mode, its claim and its memory."""
    print(
        f"{mode:9s} fed {result['fed']:,.1f} / bare {result['bare']:,.1f} images/s = {result['ratio']:.3f}  "
        f"{'PASS' if result['claim_holds'] else 'FAIL'} (claim: >= {FED_CLAIM})\n"
        f"{'':9s} epoch of {result['images']:,} images, of which {result['delivered']:.0%} were read meanwhile\n"
        f"{'':9s} worker peak {result['worker_peak_rss_gib']:.2f} GiB"
        + (f", GPU peak {result['gpu_peak_gib']:.2f} GiB" if "gpu_peak_gib" in result else "")
        + f"; bfloat16 is {result['bfloat16_speedup']:.2f} times as fast as float32"
    )


def make_images(folder: Path, count: int) -> str:
    """Write `count` CIFAR-like images, 32x32 PNGs of smooth noise about as large as CIFAR's; return the source."""
    rng = np.random.default_rng(0)
    rows = []
    for row in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((32, 32), Image.Resampling.BICUBIC)) // 16 * 16
        buffer = io.BytesIO()
        Image.fromarray(fine + rng.integers(0, 8, fine.shape, dtype=np.uint8)).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": f"{row}.png"}, "label": row % 10})
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "images.parquet")
    return f"parquet:{folder}"


def open_shards(
    data: str | None, folder: Path, images: int, make: Callable[[Path, int], str] = make_images
) -> tuple[str, Manifest]:
    """The path and the manifest of a folder of shards: of `data`, or else of made images, ingested into `folder`."""
    path = absolute(data or str(folder / "shards"))
    if data is None:
        ingest(make(folder / "images", images), path, rows_per_shard=max(images // 32, 1))
    return path, with_row_groups(path, read_manifest(path))


def make_config(args: argparse.Namespace, folder: Path, jpeg: int | None = None) -> tuple[RunConfig, Manifest]:
    """The preset cifar10 with the given arguments; synthetic images are created and ingested unless --data is given.

    With `jpeg` images are decoded to so many pixels, and synthetic ones are JPEG.
    """
    images = args.images or DEFAULT_IMAGES.get(args.encoder, 512)
    path, manifest = open_shards(args.data, folder, images, write_jpegs if jpeg else make_images)
    overrides = ["name=benchmark", f"storage={folder / 'runs'}", f"data.path={path}"]
    overrides += [f"model.encoder={args.encoder}", f"resources.workers={args.workers}"]
    overrides += [f"optim.batch_size={args.batch}", "optim.warmup_epochs=0"]  # warm-up skips the prototype loss
    overrides += [f"data.shuffle_window={manifest.num_images // 6}"]  # 8192 of CIFAR-10's 50,000 images
    overrides += ["estep.every=1000000"]  # epochs follow each other without one
    if jpeg:
        overrides += [f"data.image_size={jpeg}", f"views.size={jpeg}", "model.small_stem=false"]
    if args.encoder == "tiny":
        overrides += ["model.projector_hidden=512", "model.predictor_hidden=512"]  # as in the preset digits
    return settle_images(load_config("cifar10", overrides)), manifest


def main() -> int:
    """Measure the requested modes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18", choices=["tiny", "resnet18", "resnet34", "resnet50"])
    parser.add_argument("--batch", type=int, default=64, help="images per step over all workers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, help="number of synthetic images (512; with --encoder tiny 8192)")
    parser.add_argument(
        "--jpeg", type=int, metavar="PIXELS", help="decode images to this size; synthetic ones are JPEG"
    )
    parser.add_argument("--data", help="folder of shards to use instead of synthetic images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", choices=["resident", "streaming"], help="measure only this mode")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    results: dict[str, Any] = {"arguments": " ".join(sys.argv[1:])}
    modes = [args.mode] if args.mode else ["resident", "streaming"]
    with tempfile.TemporaryDirectory() as folder:
        connect()
        config, manifest = make_config(args, Path(folder), args.jpeg)
        for mode in modes:
            results[mode] = measure_mode(mode, config, manifest, args.rounds)
            print_result(mode, results[mode])
    holds = all(results[mode]["claim_holds"] for mode in modes)
    if args.mode is None:
        fed = {mode: results[mode]["seconds"]["fed"] for mode in modes}
        ratio = speedup(fed, of="streaming", over="resident")
        holds = holds and ratio >= STREAMING_CLAIM
        verdict = "PASS" if ratio >= STREAMING_CLAIM else "FAIL"
        print(f"streaming over resident, both fed: {ratio:.3f}  {verdict} (claim: >= {STREAMING_CLAIM})")
    conclude(results, args.out)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
