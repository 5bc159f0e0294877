"""Builds the cache of backbone features: what it holds, whether it is there, and which parts are missing.

When the command is run again, existing parts are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import safetensors.torch
import torch
from torch import nn

from pipeline.backbone_features.cache import (
    BACKBONE,
    CACHE,
    WORK,
    CacheKey,
    CachePart,
    FeatureCache,
    cache_key,
    check_same_key,
    read_cache,
)
from pipeline.backbone_features.encode import PROGRAM, Encoders, RayEncoders
from pipeline.backbone_features.neighbours import ensure_neighbours
from pipeline.backbones.onnx_program import EXAMPLES, faster_program, is_worth_it
from pipeline.backbones.weights import digest
from pipeline.build import channel_statistics, open_encoder
from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.lease import hold
from pipeline.method.precision import multiplies_bfloat16
from pipeline.progress import Echo, Progress
from pipeline.storage import Folder, Place

PARTS = 64  # at least, so that a kill loses little and all encoders have work to the end
PART_IMAGES = range(32, 1025)  # images in a part
PART_BYTES = 128 << 20  # of its decoded images, at most
ON_RAY = RayEncoders()


def settled(config: RunConfig, precision: str) -> RunConfig:
    """The configuration with this precision."""
    return config.model_copy(update={"optim": config.optim.model_copy(update={"precision": precision})})


def settle_precision(
    config: RunConfig, key: Callable[[RunConfig], CacheKey], begun: str | None, encoders: Encoders
) -> RunConfig:
    """Replace `auto` by the precision that a run has `begun` with, or that of an existing cache; all encoders use it.

    Otherwise use bfloat16 on GPUs or if this CPU supports it in hardware, else float32. The cluster may have other
    hardware at the next call. The features are stored in float16 anyway; k-means has the same scores on those of both
    precisions.
    """
    if config.optim.precision != "auto":
        return config
    if begun is not None:
        return settled(config, begun)
    fast = encoders.have_gpus(config) or multiplies_bfloat16(torch.device("cpu"))
    choices = [settled(config, name) for name in (("bfloat16", "float32") if fast else ("float32", "bfloat16"))]
    return next((each for each in choices if cache_folder(each, key(each)).names(CACHE)), choices[0])


def cache_folder(config: RunConfig, key: CacheKey) -> Folder:
    """The folder for the features of a key; its name begins with that of the data folder."""
    assert config.data.features is not None
    return Folder(config.data.features).subfolder(f"{Place.parse(config.data.path).name}-{key.digest}")


def ensure_cache(
    config: RunConfig,
    manifest: Manifest,
    echo: Echo = print,
    *,
    begun: str | None = None,
    encoders: Encoders = ON_RAY,
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
    encoders : Encoders
        What encodes the images.

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
    config = settle_precision(config, lambda each: cache_key(each, manifest, weights, *statistics), begun, encoders)
    key = cache_key(config, manifest, weights, *statistics)
    folder = cache_folder(config, key)
    if (cache := read_cache(folder)) is not None:
        check_same_key(cache.key, key, folder)
        echo(f"features: already complete in {folder.path}")
    else:
        with hold(folder.make(), "give another cache (--set data.features=...)"):
            folder.delete_unfinished()
            if (cache := begun_cache(folder, key)) is None:
                cache = plan_cache(config, manifest, key, size)
                write_network(folder, module, config, cache, encoders, echo)
                folder.write(WORK, cache.model_dump(mode="json"))
            cache = complete(config, manifest, folder, cache, encoders, echo)
    if config.views.neighbours:
        ensure_neighbours(folder, cache, config.views.neighbours)
    return folder, cache


def begun_cache(folder: Folder, key: CacheKey) -> FeatureCache | None:
    """The cache that an earlier call has begun in the folder: its parts stay the same. None if there is none."""
    if (begun := folder.read(WORK)) is None:
        return None
    cache = FeatureCache.model_validate(begun)
    check_same_key(cache.key, key, folder)
    return cache


def plan_cache(config: RunConfig, manifest: Manifest, key: CacheKey, feature_size: int) -> FeatureCache:
    """What the cache of a key will hold."""
    return FeatureCache(
        key=key,
        num_images=manifest.num_images,
        views=config.views.cached + 1,
        feature_size=feature_size,
        parts=cut_parts(manifest.num_images, config.data.decoding["size"]),
        seconds=0,
    )


def complete(
    config: RunConfig, manifest: Manifest, folder: Folder, cache: FeatureCache, encoders: Encoders, echo: Echo
) -> FeatureCache:
    """Write the missing parts of a cache, then its description."""
    started = time.monotonic()
    _write_parts(config, manifest, folder, cache, encoders, echo)
    cache = cache.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
    folder.write(CACHE, cache.model_dump(mode="json"))
    return cache


def write_network(
    folder: Folder, module: nn.Module, config: RunConfig, cache: FeatureCache, encoders: Encoders, echo: Echo
) -> None:
    """Put the backbone's weights into the folder, and an ONNX program of it if onnxruntime should encode the images.

    It does so for enough images on CPUs in float32; in bfloat16 PyTorch is faster.
    """
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    folder.write_bytes(BACKBONE, safetensors.torch.save(state))
    size = config.views.size
    assert size is not None
    if config.optim.precision != "float32" or not is_worth_it(cache.num_images * cache.views, size):
        return
    if encoders.have_gpus(config):
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
    config: RunConfig, manifest: Manifest, folder: Folder, cache: FeatureCache, encoders: Encoders, echo: Echo
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
    for row in encoders.write(config, manifest, folder, missing):
        progress.add(row["rows"])
