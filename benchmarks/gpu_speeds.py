"""What `benchmarks.gpu` measures: the golden vectors, and the speed of each part of DigPro on one device.

Needs only torch and torchvision. Each measurement is a function of a device and of sizes, and returns numbers for JSON.
A speed is `count` items over the median of `seconds`, one number for each round.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines.reference import Reference
from benchmarks.loop import MEAN, STD, Loop, Recipe, simclr_policy
from benchmarks.rows import make_rows
from benchmarks.step import FEATURES, SeparateViews, golden_error, take_step, use_torch_batchnorm
from pipeline.clustering.kmeans import spherical_kmeans
from pipeline.data.views import TwoViews
from pipeline.method.batchnorm import GlobalBatchNorm
from pipeline.method.digpro import DigPro
from pipeline.method.precision import multiplies_bfloat16

Result = dict[str, Any]
GOLDEN_LIMITS = {torch.float64: 1e-9, torch.float32: 5e-5}
KMEANS_CLUSTERS, KMEANS_NOISE = 100, 3.0
PHOTO = 256  # pixels, the side of an image of UC-Merced

# Dense TFLOP/s of each card's data sheet, by a part of its name; the first match counts.
PEAKS: dict[str, dict[str, float]] = {
    "H200": {"float32": 67, "tf32": 494, "bfloat16": 989},
    "H100 PCIe": {"float32": 51, "tf32": 378, "bfloat16": 756},
    "H100 NVL": {"float32": 60, "tf32": 417, "bfloat16": 835},
    "H100": {"float32": 67, "tf32": 494, "bfloat16": 989},
    "A100": {"float32": 19.5, "tf32": 156, "bfloat16": 312},
    "L40S": {"float32": 91.6, "tf32": 183, "bfloat16": 362},
    "L4": {"float32": 30.3, "tf32": 60, "bfloat16": 121},
    "A10": {"float32": 31.2, "tf32": 62.5, "bfloat16": 125},
}


def use_passes(model: DigPro) -> None:
    """BatchNorm as with several workers, by the kernels of SyncBatchNorm; a single worker uses torch's own."""
    for part in model.modules():
        if isinstance(part, GlobalBatchNorm):
            part._by_torch = part._by_passes  # type: ignore[method-assign]


VARIANTS: dict[str, Callable[[DigPro, Sizes], None]] = {
    "channels_last": lambda model, sizes: model.use_channels_last(),
    "several workers' BatchNorm": lambda model, sizes: use_passes(model),
    "torch's BatchNorm": lambda model, sizes: use_torch_batchnorm(model),  # its statistics are of both views together
    "compile": lambda model, sizes: model.compile_networks(sizes.compiler),
}


class Way(NamedTuple):
    """One way to run the step; the reference's has a forward pass for each view, and torch's BatchNorm."""

    precision: str = "bfloat16"
    variants: tuple[str, ...] = ()
    kind: type[DigPro] = DigPro

    def __str__(self) -> str:
        first = "the reference's way, " if self.kind is SeparateViews else ""
        return first + ", ".join((self.precision, *self.variants))


WAYS = (
    Way("bfloat16"),
    Way("float32"),
    Way("tf32"),
    Way("float32", kind=SeparateViews),
    Way("bfloat16", ("channels_last",)),
    Way("bfloat16", ("compile",)),
    Way("bfloat16", ("channels_last", "compile")),
)
MORE_WAYS = (
    Way("bfloat16", ("several workers' BatchNorm",)),
    Way("bfloat16", ("channels_last", "several workers' BatchNorm")),
    Way("bfloat16", ("torch's BatchNorm",)),
    Way("bfloat16", ("channels_last", "torch's BatchNorm", "compile")),
    Way("float32", ("compile",)),
    Way("tf32", ("channels_last",)),
    Way("tf32", ("channels_last", "compile")),
    Way("bfloat16", kind=SeparateViews),
)


@dataclass(frozen=True)
class Sizes:
    """How large the measurements are; the defaults are for a GPU.

    Attributes
    ----------
    small, large : Recipe
        Of the bare step, on small images and on photos.
    small_ways, large_ways : tuple of Way
        In which these steps are made.
    training : Recipe
        Of the training, for as many clusters as its images have classes.
    images : int
        Of the E-step.
    view_images : int
        Images whose views are made in one call.
    fed_images : int
        Of the epoch that a DataLoader feeds.
    rows : tuple of int
        N of k-means.
    rounds, block_seconds : int, float
        How often a speed is measured, and the length of the timed block each time.
    compiler : str
        Backend of torch.compile.
    """

    small: Recipe = field(default_factory=partial(Recipe, "resnet18", 32, 256))
    large: Recipe = field(default_factory=partial(Recipe, "resnet50", 224, 128))
    training: Recipe = field(default_factory=partial(Recipe, "resnet18", 32, 256, epochs=1000, warmup_epochs=200))
    small_ways: tuple[Way, ...] = WAYS + MORE_WAYS
    large_ways: tuple[Way, ...] = WAYS
    images: int = 50_000
    view_images: int = 256
    fed_images: int = 5_120
    rows: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    rounds: int = 5
    block_seconds: float = 0.5
    compiler: str = "inductor"


TINY = Sizes(
    small=Recipe("tiny", 8, 4, hidden=32, restarts=2),
    large=Recipe("tiny", 16, 4, hidden=32, restarts=2),
    training=Recipe("tiny", 8, 4, hidden=32, restarts=2, epochs=2, warmup_epochs=1),
    small_ways=(Way(), Way("float32", kind=SeparateViews), Way("tf32", tuple(VARIANTS))),
    large_ways=(Way(),),
    images=32,
    view_images=4,
    fed_images=8,
    rows=(200, 300),
    rounds=1,
    block_seconds=0.0,
    compiler="eager",
)


class Measurement(NamedTuple):
    """A named measurement, and the seconds it may take on a GPU: with less time left it is not begun."""

    name: str
    seconds: float
    measure: Callable[[torch.device, Sizes], Result]


def measurements(sizes: Sizes) -> list[Measurement]:
    """All of them, in the order of their importance."""
    return [
        Measurement("golden vectors", 10, golden),
        *step_measurements(sizes.small, sizes.small_ways),
        *(view_measurement(sizes.small.size, side) for side in (sizes.small.size, PHOTO)),
        Measurement("E-step", 20, estep),
        Measurement("epoch fed by a DataLoader, the reference's way", 40, fed_epoch),
        *map(kmeans_measurement, sizes.rows[:-1]),
        *step_measurements(sizes.large, sizes.large_ways),
        view_measurement(sizes.large.size, PHOTO),
        *map(kmeans_measurement, sizes.rows[-1:]),  # of 10 million rows, which takes longest
    ]


def step_measurements(recipe: Recipe, ways: tuple[Way, ...]) -> list[Measurement]:
    """The bare step of one encoder."""
    shape = f"step {recipe.encoder}@{recipe.size} B={recipe.batch}"
    return [
        Measurement(f"{shape}, {way}", 60 if "compile" in way.variants else 12, partial(bare_step, recipe, way))
        for way in ways
    ]


def view_measurement(size: int, side: int) -> Measurement:
    """Views of `size` pixels from images of `side` pixels."""
    return Measurement(f"views {size} from {side}", 10, partial(views, side=side, size=size))


def kmeans_measurement(rows: int) -> Measurement:
    """k-means of so many features."""
    return Measurement(f"k-means {rows:,} x {FEATURES}", 10 + rows / 2e5, partial(kmeans, rows=rows))


def golden(device: torch.device, sizes: Sizes) -> Result:
    """The reference code's losses, recomputed on the device."""
    with float32_as("float32"):
        errors = {str(dtype): golden_error(str(device), dtype) for dtype in GOLDEN_LIMITS}
    return {"errors": errors, "passed": all(errors[str(dtype)] < limit for dtype, limit in GOLDEN_LIMITS.items())}


def bare_step(recipe: Recipe, way: Way, device: torch.device, sizes: Sizes) -> Result:
    """Steps on views that are on the device: their speed, share of the card's peak, and memory."""
    autocast = torch.bfloat16 if way.precision == "bfloat16" else None
    with float32_as(way.precision):
        model = recipe.build_model(way.kind, autocast).to(device)
        batch = step_inputs(recipe, device)
        flops = count_flops(model, batch)
        for name in way.variants:
            VARIANTS[name](model, sizes)
        model.to(device)  # what a variant has put in place is new
        if "channels_last" in way.variants:
            batch["views"] = [view.contiguous(memory_format=torch.channels_last) for view in batch["views"]]
        step = partial(take_step, model, recipe.build_optimizer(model), **batch)
        reset_peak(device)
        result = speed(step, recipe.batch, "images/s", device, sizes)
    return result | {"tflops_per_step": flops / 1e12, "peak_gib": peak_gib(device)} | share_of_peak(result, flops, way)


def step_inputs(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Random views, labels and noise of one step."""
    return {
        "views": list(torch.randn(2, recipe.batch, 3, recipe.size, recipe.size, device=device)),
        "labels": torch.arange(recipe.batch, device=device) % recipe.clusters,
        "noise": 0.001 * torch.randn(2, recipe.batch, FEATURES, device=device),
    }


def count_flops(model: DigPro, batch: dict[str, Any]) -> int:
    """Floating-point operations of a step's matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        model(*batch["views"], batch["labels"], noise=batch["noise"], target_momentum=0.996).total.backward()
    return int(counter.get_total_flops())


def share_of_peak(result: Result, flops: int, way: Way) -> Result:
    """Which part of the data sheet's speed a step reaches; None for a card without entry in PEAKS."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((peaks[way.precision] for name, peaks in PEAKS.items() if name in card), None)
    reached = flops / statistics.median(result["seconds"]) / 1e12
    return {"tflops": reached, "share_of_peak": reached / peak if peak else None}


def views(device: torch.device, sizes: Sizes, *, side: int, size: int) -> Result:
    """Pairs of views of decoded images of `side` pixels, nothing else."""
    images = random_images(sizes.view_images, side, device)
    index = torch.arange(len(images), device=device)
    make = TwoViews(simclr_policy(size), MEAN, STD, seed=0)
    return speed(lambda: make(images, index, 0), len(images), "images/s", device, sizes)


def estep(device: torch.device, sizes: Sizes) -> Result:
    """The E-step in the precision of a run: features of all images, and k-means on them."""
    images = random_images(sizes.images, sizes.small.size, device)
    loop = Loop(images, sizes.small, autocast=run_precision(device))
    loop.model.encode(loop.preprocess(images[:2]))  # the first call allocates
    reset_peak(device)
    features: list[Tensor] = []
    encode = timed(lambda: features.append(loop.encode()), device)
    cluster = timed(lambda: loop.cluster(features[0]), device)
    parts = {"encode_seconds": encode, "kmeans_seconds": cluster, "peak_gib": peak_gib(device)}
    return {"count": sizes.images, "unit": "images/s", "seconds": [encode + cluster], **parts}


def kmeans(device: torch.device, sizes: Sizes, *, rows: int) -> Result:
    """Spherical k-means as the E-step calls it: all starts together."""
    features, restarts = make_rows(rows, FEATURES, KMEANS_CLUSTERS, KMEANS_NOISE, device), sizes.small.restarts
    reset_peak(device)
    found: list[int] = []

    def cluster() -> None:
        found.append(spherical_kmeans(features, KMEANS_CLUSTERS, restarts=restarts, empty="reseed").n_iter)

    seconds = [timed(cluster, device)]
    settings = {"clusters": KMEANS_CLUSTERS, "restarts": restarts, "iterations": found[0]}
    return {"count": rows, "unit": "rows/s", "seconds": seconds, "peak_gib": peak_gib(device), **settings}


def fed_epoch(device: torch.device, sizes: Sizes) -> Result:
    """An M-step whose views a DataLoader makes on all cores, beside ours on the device, both as they come."""
    images = random_images(sizes.fed_images, sizes.small.size, device)
    workers = os.cpu_count() or 1 if device.type == "cuda" else 0
    reference = Reference(images.cpu().numpy(), sizes.small, workers, device)
    ours = Loop(images, sizes.small, autocast=run_precision(device))
    labels = ours.labels.cpu()
    epochs = {"reference": lambda: reference.train_epoch(labels), "ours": ours.train_epoch}
    for epoch in epochs.values():  # the first starts the workers and allocates
        epoch()
    seconds = {name: [timed(epoch, device) for _ in range(2)] for name, epoch in epochs.items()}
    ratio = statistics.median(seconds["reference"]) / statistics.median(seconds["ours"])
    return {
        "count": len(images),
        "unit": "images/s",
        "seconds": seconds["reference"],
        "our_seconds": seconds["ours"],
        "ours_over_reference": ratio,
    }


def run_precision(device: torch.device) -> torch.dtype | None:
    """What `optim.precision=auto` chooses."""
    return torch.bfloat16 if multiplies_bfloat16(device) else None


def random_images(count: int, side: int, device: torch.device) -> Tensor:
    """Images (count, side, side, 3) uint8 of noise."""
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, device=device)


@contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """Multiply float32 with TF32 if the precision is "tf32", and without it otherwise."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def speed(block: Callable[[], object], count: int, unit: str, device: torch.device, sizes: Sizes) -> Result:
    """Seconds of one call of `block`, which handles `count` items: the mean of a timed block, for each round."""
    for _ in range(2):  # the first calls compile and allocate
        block()
    calls = max(1, round(sizes.block_seconds / timed(block, device)))
    seconds = [timed(lambda: [block() for _ in range(calls)], device) / calls for _ in range(sizes.rounds)]
    return {"count": count, "unit": unit, "seconds": seconds}


def timed(block: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done what `block` asks for."""
    if device.type != "cuda":
        start = time.perf_counter()
        block()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    block()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def reset_peak(device: torch.device) -> None:
    """Forget the memory that was in use until now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: torch.device) -> float | None:
    """Most memory that tensors have taken since `reset_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
