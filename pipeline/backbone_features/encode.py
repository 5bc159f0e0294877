"""Encodes images by a frozen backbone and writes the features: with Ray Data actors, or in this process.

Actors write the parts themselves: features never pass through the driver.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from ray.exceptions import RayError
from torch import Tensor, nn

from pipeline.backbone_features.cache import CachePart, part_table, read_backbone
from pipeline.backbones.onnx_program import OnnxProgram
from pipeline.build import autocast_dtype, build_preprocess, build_views, open_encoder, without_weights
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
from pipeline.storage import Folder

PartRow = dict[str, Any]
PROGRAM = "backbone.onnx"  # for encoders on CPUs, if it was made
CPU_BATCH = 8  # images in a forward pass on a CPU: with more, the kernel clears memory for a fifth of the time


class Encoders(Protocol):
    """What encodes the images: `RayEncoders` or `LocalEncoders`."""

    def have_gpus(self, config: RunConfig) -> bool:
        """Whether they encode on GPUs."""

    def write(self, config: RunConfig, manifest: Manifest, folder: Folder, parts: list[CachePart]) -> Iterator[PartRow]:
        """Write parts of a cache, and yield each once it is written."""


class RayEncoders:
    """Actors on Ray, which is connected; tasks decode the images for them."""

    def have_gpus(self, config: RunConfig) -> bool:
        """Whether the actors get GPUs of the cluster."""
        return actor_pool(config.resources, node_resources(), 1).gpus

    def write(self, config: RunConfig, manifest: Manifest, folder: Folder, parts: list[CachePart]) -> Iterator[PartRow]:
        """Write the parts, and yield each once it is written.

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


class LocalEncoders:
    """As many threads of this process as PyTorch has.

    Each computes alone. PyTorch's own threads would wait for each other, and for long where other programs run.
    """

    def have_gpus(self, config: RunConfig) -> bool:
        """Whether this process has a GPU."""
        return torch.cuda.is_available()

    def write(self, config: RunConfig, manifest: Manifest, folder: Folder, parts: list[CachePart]) -> Iterator[PartRow]:
        """Write the parts, and yield each once it is written."""
        threads = torch.get_num_threads()
        try:
            writer = CacheWriter(config, manifest, folder.path)
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield from pool.map(lambda part: writer(decode_part(part.model_dump(), config, manifest)), parts)
        finally:
            torch.set_num_threads(threads)


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
