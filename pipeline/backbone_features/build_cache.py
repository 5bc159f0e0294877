"""Builds the cache of backbone features: with Ray Data actors that each hold the backbone, or in this process.

Actors write the parts themselves: features never pass through the driver. When the command is run again, existing parts
are kept.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import safetensors.torch
import torch
from ray.exceptions import RayError
from torch import Tensor, nn

from pipeline.backbone_features.cache import (
    BACKBONE,
    CACHE,
    WORK,
    CacheKey,
    CachePart,
    FeatureCache,
    cache_key,
    check_same_key,
    part_table,
    read_cache,
)
from pipeline.backbone_features.neighbours import ensure_neighbours
from pipeline.backbones.onnx_program import EXAMPLES, OnnxProgram, faster_program, is_worth_it
from pipeline.backbones.weights import digest
from pipeline.build import (
    autocast_dtype,
    build_preprocess,
    build_views,
    channel_statistics,
    open_encoder,
    without_weights,
)
from pipeline.checks.capacity import actor_pool
from pipeline.checks.nodes import node_resources
from pipeline.config.models import RunConfig
from pipeline.data.decode import decode_table
from pipeline.data.quiet import cpp_log_lines_hidden
from pipeline.data.read import read_rows
from pipeline.data.shards import Manifest
from pipeline.data.streaming import quiet_data_context
from pipeline.data.tasks import own_error
from pipeline.errors import DataError
from pipeline.lease import hold
from pipeline.method.precision import multiplies_bfloat16
from pipeline.progress import Echo, Progress
from pipeline.storage import Folder, Place

PartRow = dict[str, Any]
WriteParts = Callable[[RunConfig, Manifest, Folder, list[CachePart]], Iterator[PartRow]]
"""Writes parts of a cache, and yields each once it is written."""
PROGRAM = "backbone.onnx"  # for actors on CPUs, if it was made
PARTS = 64  # at least, so that a kill loses little and all actors have work to the end
PART_IMAGES = range(32, 1025)  # images in a part
PART_BYTES = 128 << 20  # of its decoded images, at most
CPU_BATCH = 8  # images in a forward pass on a CPU: with more, the kernel clears memory for a fifth of the time


def settled(config: RunConfig, precision: str) -> RunConfig:
    """The configuration with this precision."""
    return config.model_copy(update={"optim": config.optim.model_copy(update={"precision": precision})})


def settle_precision(
    config: RunConfig, key: Callable[[RunConfig], CacheKey], begun: str | None, *, on_ray: bool
) -> RunConfig:
    """Replace `auto` by the precision that a run has `begun` with, or that of an existing cache; all actors use it.

    Otherwise use bfloat16 on GPUs or if this CPU supports it in hardware, else float32. The cluster may have other
    hardware at the next call. The features are stored in float16 anyway; k-means has the same scores on those of both
    precisions.
    """
    if config.optim.precision != "auto":
        return config
    if begun is not None:
        return settled(config, begun)
    fast = encoded_on_gpus(config, on_ray=on_ray) or multiplies_bfloat16(torch.device("cpu"))
    choices = [settled(config, name) for name in (("bfloat16", "float32") if fast else ("float32", "bfloat16"))]
    return next((each for each in choices if cache_folder(each, key(each)).names(CACHE)), choices[0])


def encoded_on_gpus(config: RunConfig, *, on_ray: bool) -> bool:
    """Whether GPUs encode the images: those of the cluster, or this process's own."""
    return actor_pool(config.resources, node_resources(), 1).gpus if on_ray else torch.cuda.is_available()


def cache_folder(config: RunConfig, key: CacheKey) -> Folder:
    """The folder for the features of a key; its name begins with that of the data folder."""
    assert config.data.features is not None
    return Folder(config.data.features).subfolder(f"{Place.parse(config.data.path).name}-{key.digest}")


def ensure_cache(
    config: RunConfig, manifest: Manifest, echo: Echo = print, *, begun: str | None = None, on_ray: bool = True
) -> tuple[Folder, FeatureCache]:
    """The cache of backbone features that a settled configuration asks for, made if there is none.

    Parameters
    ----------
    config : RunConfig
    manifest : Manifest
    echo : callable
        Takes the lines of progress.
    begun : str, optional
        The precision that the run has begun with, if it has.
    on_ray : bool
        By actors on Ray, which is connected; otherwise this process encodes the images.

    Raises
    ------
    ConfigError
        When the backbone or its weights cannot be obtained, or another command is using the folder.
    DataError
        When the folder holds other features, or images cannot be read.
    RunFailed
        When Ray fails; the same call resumes.
    """
    module, size = open_encoder(config, echo)
    weights, statistics = digest(module.state_dict()), channel_statistics(config, manifest)
    config = settle_precision(
        config, lambda each: cache_key(each, manifest, weights, *statistics), begun, on_ray=on_ray
    )
    key = cache_key(config, manifest, weights, *statistics)
    folder = cache_folder(config, key)
    if (cache := read_cache(folder)) is not None:
        check_same_key(cache.key, key, folder)
        echo(f"features: already complete in {folder.path}")
    else:
        with hold(folder.make(), "give another cache (--set data.features=...)"):
            folder.delete_unfinished()
            cache = claim(folder, key, module, config, manifest, size, echo, on_ray=on_ray)
            cache = _complete(config, manifest, folder, cache, echo, parts_by_actors if on_ray else parts_in_process)
    if config.views.neighbours:
        ensure_neighbours(folder, cache, config.views.neighbours)
    return folder, cache


def _complete(
    config: RunConfig, manifest: Manifest, folder: Folder, cache: FeatureCache, echo: Echo, write: WriteParts
) -> FeatureCache:
    """Write the missing parts of a cache, then its description."""
    started = time.monotonic()
    _write_parts(config, manifest, folder, cache, echo, write)
    cache = cache.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
    folder.write(CACHE, cache.model_dump(mode="json"))
    return cache


def claim(
    folder: Folder,
    key: CacheKey,
    module: nn.Module,
    config: RunConfig,
    manifest: Manifest,
    size: int,
    echo: Echo,
    *,
    on_ray: bool,
) -> FeatureCache:
    """The planned cache, recorded in the folder so that a later call continues with the same parts."""
    if (begun := folder.read(WORK)) is not None:
        cache = FeatureCache.model_validate(begun)
        check_same_key(cache.key, key, folder)
        return cache
    side = config.data.decoding["size"]
    parts = cut_parts(manifest.num_images, side)
    views = config.views.cached + 1
    write_network(folder, module, config, manifest.num_images * views, echo, on_ray=on_ray)
    cache = FeatureCache(
        key=key, num_images=manifest.num_images, views=views, feature_size=size, parts=parts, seconds=0
    )
    folder.write(WORK, cache.model_dump(mode="json"))
    return cache


def write_network(
    folder: Folder, module: nn.Module, config: RunConfig, images: int, echo: Echo, *, on_ray: bool
) -> None:
    """Put the backbone's weights into the folder, and an ONNX program of it if onnxruntime should encode the images.

    It does so for enough images on CPUs in float32; in bfloat16 PyTorch is faster.
    """
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    folder.write_bytes(BACKBONE, safetensors.torch.save(state))
    size = config.views.size
    assert size is not None
    if config.optim.precision != "float32" or not is_worth_it(images, size):
        return
    if encoded_on_gpus(config, on_ray=on_ray):
        return
    examples = torch.rand(EXAMPLES, 3, size, size, generator=torch.Generator().manual_seed(0))
    if (program := faster_program(module.eval(), examples, ["features"], echo)) is not None:
        folder.write_bytes(PROGRAM, program)


def cut_parts(images: int, side: int) -> tuple[CachePart, ...]:
    """Parts of equal length, from the number of images and the side of a decoded one."""
    most = min(PART_IMAGES[-1], max(1, PART_BYTES // (3 * side * side)))
    rows = min(most, max(PART_IMAGES[0], images // PARTS))
    starts = range(0, images, rows)
    return tuple(
        CachePart(file=f"part-{number:05d}.parquet", first_index=start, rows=min(rows, images - start))
        for number, start in enumerate(starts)
    )


def _write_parts(
    config: RunConfig, manifest: Manifest, folder: Folder, cache: FeatureCache, echo: Echo, write: WriteParts
) -> None:
    """Write the missing parts, and report progress."""
    there = set(folder.names("part-"))
    missing = [part for part in cache.parts if part.file not in there]
    if not missing:
        return
    kept = cache.num_images - sum(part.rows for part in missing)
    echo(
        f"features: {cache.num_images:,} images, {cache.views} views each, by {config.model.encoder} at "
        f"{config.views.size} pixels" + (f"; {kept:,} images are already done" if kept else "")
    )
    progress = Progress("features", "images", cache.num_images, kept, echo)
    for row in write(config, manifest, folder, missing):
        progress.add(row["rows"])


def parts_in_process(
    config: RunConfig, manifest: Manifest, folder: Folder, parts: list[CachePart]
) -> Iterator[PartRow]:
    """Write the parts in as many threads of this process as PyTorch has.

    Each computes alone. PyTorch's own threads would wait for each other, and for long where other programs run.
    """
    threads = torch.get_num_threads()
    try:
        writer = CacheWriter(config, manifest, folder.path)
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(lambda part: writer(decode_part(part.model_dump(), config, manifest)), parts)
    finally:
        torch.set_num_threads(threads)


def parts_by_actors(config: RunConfig, manifest: Manifest, folder: Folder, parts: list[CachePart]) -> Iterator[PartRow]:
    """Write the parts on Ray: tasks decode the images, actors encode them.

    Raises
    ------
    DataError, RunFailed
        The actor's own error if it is one of ours, or else one that says how Ray failed.
    """
    try:
        with cpp_log_lines_hidden():  # one warns that actors could lose their arguments, whatever these are
            yield from _dataset_of_parts(config, manifest, folder, parts).iter_rows()
    except RayError as error:
        raise own_error(error, "the features could not be computed", folder.path) from error


def _dataset_of_parts(
    config: RunConfig, manifest: Manifest, folder: Folder, parts: list[CachePart]
) -> ray.data.Dataset:
    """A data set that writes the parts while it is read."""
    quiet_data_context()
    rows = [part.model_dump() for part in parts]
    pool = actor_pool(config.resources, node_resources(), len(rows))
    # Without GPUs, an actor and a decoding task share a CPU: actors that took all CPUs would never get images.
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(decode_part, fn_args=[config, manifest], num_cpus=1 if pool.gpus else 0.25)
        .map(
            CacheWriter,
            fn_constructor_args=[config, manifest, folder.path],
            num_gpus=1 if pool.gpus else 0,
            num_cpus=0 if pool.gpus else 0.75,
            concurrency=(pool.least, pool.most),
        )
    )


def decode_part(part: PartRow, config: RunConfig, manifest: Manifest) -> PartRow:
    """A part with its decoded images (rows, S, S, 3) uint8."""
    start = part["first_index"]
    table = read_rows(config.data.path, manifest, start, start + part["rows"])
    return {**part, "images": decode_table(table, **config.data.decoding)["image"]}


class CacheWriter:
    """Holds the backbone, and writes the backbone features of a part: a Ray Data actor, or an object of this process.

    Parameters
    ----------
    config : RunConfig
        Settled.
    manifest : Manifest
    folder : str
        The folder of the cache, with the backbone's weights in it.
    """

    def __init__(self, config: RunConfig, manifest: Manifest, folder: str) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.folder, self.pairs = Folder(folder), -(-config.views.cached // 2)
        self.cached = config.views.cached
        self.batch = config.estep.batch_size if self.device.type == "cuda" else CPU_BATCH
        self.autocast = autocast_dtype(config, self.device)
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        self.network = self._load(config)
        seeded = config.model_copy(update={"seed": config.views.cache_seed})
        self.views = build_views(seeded, manifest)
        self.preprocess = build_preprocess(config, manifest).to(self.device)

    def __call__(self, part: PartRow) -> PartRow:
        """Write the part's file; return the part without the images."""
        images = torch.from_numpy(np.ascontiguousarray(part.pop("images")))
        index = torch.arange(part["first_index"], part["first_index"] + len(images))
        blocks = zip(images.split(self.batch), index.split(self.batch), strict=True)
        features = torch.cat([self._encode(block.to(self.device), at.to(self.device)) for block, at in blocks])
        self._check_finite(features, index)
        buffer = io.BytesIO()
        table = part_table(part["first_index"], features.numpy())
        pq.write_table(table, buffer, compression="none", use_dictionary=False, write_page_checksum=True)
        self.folder.write_bytes(part["file"], buffer.getvalue())
        return part

    def _load(self, config: RunConfig) -> Callable[[Tensor], Tensor]:
        if self.device.type == "cpu" and self.folder.names(PROGRAM):
            program = OnnxProgram(self.folder.read_bytes(PROGRAM))
            return lambda images: program(images)[0]
        module = load_backbone(config, self.folder).to(self.device).to(memory_format=torch.channels_last)
        return lambda images: module(images.contiguous(memory_format=torch.channels_last))

    @torch.inference_mode()
    def _encode(self, images: Tensor, index: Tensor) -> Tensor:
        """Features (n, 1 + cached, F) float16 of all views of images (n, S, S, 3)."""
        views = list(self._views(images, index))  # before autocast, which would round them
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            encoded = [self.network(view) for view in views]
        return torch.stack([features.half().cpu() for features in encoded], dim=1)

    def _views(self, images: Tensor, index: Tensor) -> Iterator[Tensor]:
        """The un-augmented view, and then the augmented ones: two for each number of a pair."""
        yield self.preprocess(images)
        augmented = (view for pair in range(self.pairs) for view in self.views(images, index, pair))
        yield from (view for _, view in zip(range(self.cached), augmented, strict=False))

    def _check_finite(self, features: Tensor, index: Tensor) -> None:
        finite = features.isfinite().flatten(1).all(dim=1)
        if not bool(finite.all()):
            raise DataError(
                f"image {int(index[~finite][0])} has features that float16 cannot hold; end the backbone with a layer "
                "that normalises them, or set optim.precision=float32"
            )


def load_backbone(config: RunConfig, folder: Folder) -> nn.Module:
    """The backbone with the weights stored in a cache, in evaluation mode; nothing is downloaded."""
    module = open_encoder(without_weights(config))[0]
    module.load_state_dict(read_backbone(folder))
    return module.eval()


def read_backbone(folder: Folder) -> dict[str, Tensor]:
    """The backbone's weights stored in a cache."""
    return dict(safetensors.torch.load(folder.read_bytes(BACKBONE)))
