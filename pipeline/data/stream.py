"""From shards to the batches of a worker, through Ray Data; resident or streaming.

Resident: every worker receives the decoded set once and keeps it as one uint8 tensor on its device. The order of an
epoch is a permutation keyed by (seed, epoch), of which a worker takes its slice of each global batch: the same order
for every number of workers, and a resume is an index.

Streaming: Ray Data reads and decodes the shards anew each epoch and splits them over the workers. The order comes
from the file order and a local buffer, both reseeded each epoch; a resume skips what was consumed, which repeats
the order as long as the number of workers stays.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import ray.data
import ray.train
import torch
from ray.data import DataContext, Dataset, ExecutionOptions, FileShuffleConfig
from ray.train import DataConfig
from torch import Tensor

from pipeline.collectives import RowRange, equal_rows, row_range, world_size
from pipeline.config import RunConfig
from pipeline.data.decode import decode_table
from pipeline.data.shards import Manifest, filesystem

BLOCK_BYTES = 8 << 20  # small enough that a streaming epoch starts after one block, not after the whole set


@dataclass(frozen=True)
class Batch:
    """This worker's `rows` of one global batch: images uint8 (B_local, H, W, 3) and index int64 (B_local,)."""

    images: Tensor
    index: Tensor
    rows: RowRange


class Images(Protocol):
    """What the training loop asks of either mode."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on; as many on every worker."""

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (n, H, W, 3) and index (n,) of this worker's part of the set, each image on one worker only."""


def resident_bytes(manifest: Manifest, size: int) -> int:
    """Memory that the decoded set takes in each worker."""
    return manifest.num_images * size * size * 3


def choose_mode(config: RunConfig, manifest: Manifest) -> tuple[str, str]:
    """The mode, "resident" or "streaming", and the reason as a sentence."""
    size = resident_bytes(manifest, config.data.image_size) / 2**30
    limit = config.data.resident_limit_gb
    if config.data.mode != "auto":
        return config.data.mode, "as data.mode says"
    if size <= limit:
        return "resident", f"the decoded set takes {size:.2f} GiB a worker, within data.resident_limit_gb={limit:g}"
    return "streaming", f"the decoded set takes {size:.2f} GiB a worker, over data.resident_limit_gb={limit:g}"


def decoded(config: RunConfig, manifest: Manifest, *, shuffle_seed: int | None = None) -> Dataset:
    """The data set as blocks of {"image": uint8 (n, S, S, 3), "index": int64 (n,)}, lazily.

    With `shuffle_seed` the files come in another order each time the plan runs, by the seed and the run's number.
    """
    files, root = filesystem(config.data.path)
    shuffle = None if shuffle_seed is None else FileShuffleConfig(seed=shuffle_seed, reseed_after_execution=True)
    table = ray.data.read_parquet(
        [f"{root}/{shard.file}" for shard in manifest.shards],
        filesystem=files,
        shuffle=shuffle,
    )
    return table.select_columns(["image", "index"]).map_batches(
        decode_table, batch_format="pyarrow", fn_args=[config.data.image_size], batch_size=512
    )


def build_datasets(
    config: RunConfig, manifest: Manifest, mode: str, run_folder: str
) -> tuple[dict[str, Dataset], DataConfig]:
    """What a TorchTrainer needs to feed a mode; called in the driver, whose materialised blocks survive restarts."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    options = ExecutionOptions(preserve_order=True)
    if mode == "resident":
        whole = decoded(config, manifest).materialize()
        return {"images": whole}, DataConfig(datasets_to_split=[], execution_options=options)
    datasets = {"epoch": decoded(config, manifest, shuffle_seed=config.seed), "blocks": decoded(config, manifest)}
    return datasets, _StreamingDataConfig(options, run_folder)


class _StreamingDataConfig(DataConfig):
    """Equal splits for training, all rows for the E-step, and the shuffle's epoch counter set after a restart.

    Ray counts the executions of a plan to reseed its shuffle, from 0 in each new worker group, and has no public way
    to start elsewhere: hence the private attribute.
    """

    def __init__(self, options: ExecutionOptions, run_folder: str) -> None:
        super().__init__(execution_options=options)
        self.run_folder = run_folder

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, worker_handles: Any, worker_node_ids: Any, **_: Any
    ) -> list[dict[str, Any]]:
        """One iterator per data set and worker; Ray Train calls it at each start of the worker group."""
        epochs = _epochs_in_checkpoint(self.run_folder)
        output: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            dataset = dataset.copy(dataset)
            dataset.context.execution_options = self._resolve_execution_options(name)
            dataset.context._execution_idx = epochs
            equal = name == "epoch"
            splits = dataset.streaming_split(world_size, equal=equal, locality_hints=worker_node_ids)
            for worker, split in zip(output, splits, strict=True):
                worker[name] = split
        return output


def _epochs_in_checkpoint(run_folder: str) -> int:
    """Finished epochs of the latest checkpoint that Ray Train registered under this folder; 0 without one."""
    files, root = filesystem(run_folder)
    try:
        metrics = ray.train.Result.from_path(root, storage_filesystem=files).metrics
    except (OSError, RuntimeError, ValueError):
        return 0
    return int(metrics["epoch"]) if metrics else 0


class ResidentImages:
    """The whole decoded set as one uint8 tensor (N, S, S, 3) on this worker's device."""

    def __init__(self, config: RunConfig, manifest: Manifest, device: torch.device) -> None:
        self.seed, self.batch_size, self.block = config.seed, config.optim.batch_size, config.estep.batch_size
        size = config.data.image_size
        self.images = torch.empty((manifest.num_images, size, size, 3), dtype=torch.uint8, device=device)
        found = torch.zeros(manifest.num_images, dtype=torch.bool)
        for batch in _torch_batches("images", 4096, device):
            self.images[batch["index"]] = batch["image"]
            found[batch["index"].cpu()] = True
        if not found.all():
            raise RuntimeError(f"{int((~found).sum())} of {len(found)} images did not arrive; ingest the source again")

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Slices of permutation(seed, epoch): the same global batches for every number of workers."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
        rows = row_range(self.batch_size)
        for step in range(first_step, len(order) // self.batch_size):
            start = step * self.batch_size
            index = order[start + rows.start : start + rows.stop]
            yield Batch(self.images[index], index, rows)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's contiguous part of the set."""
        own = row_range(len(self.images))
        for start in range(own.start, own.stop, self.block):
            index = torch.arange(start, min(start + self.block, own.stop), device=self.images.device)
            yield self.images[start : start + len(index)], index


class StreamedImages:
    """Batches that Ray Data reads, decodes and splits anew each epoch."""

    def __init__(self, config: RunConfig, manifest: Manifest, device: torch.device) -> None:
        self.config, self.device = config, device
        self.steps = manifest.num_images // config.optim.batch_size
        if config.optim.batch_size % world_size():
            raise ValueError(
                f"optim.batch_size={config.optim.batch_size} does not divide by the {world_size()} workers; "
                "streaming needs equal shares (resident mode does not)"
            )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The stream's order; what an interrupted run had consumed is read again and skipped."""
        local = self.config.optim.batch_size // world_size()
        rows = equal_rows(local)
        buffer = max(self.config.data.shuffle_buffer, local)
        stream = _torch_batches(
            "epoch",
            local,
            self.device,
            drop_last=True,
            prefetch_batches=self.config.data.prefetch_batches,
            local_shuffle_buffer_size=buffer,
            local_shuffle_seed=self.config.seed * 1_000_003 + epoch,
        )
        for step, batch in enumerate(stream):  # to its end: an epoch left early would not count for Ray's reseeding
            if first_step <= step < self.steps:
                yield Batch(batch["image"], batch["index"], rows)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Whatever part of the set Ray Data hands to this worker."""
        for batch in _torch_batches("blocks", self.config.estep.batch_size, self.device):
            yield batch["image"], batch["index"]


def worker_images(mode: str, config: RunConfig, manifest: Manifest, device: torch.device) -> Images:
    """The images of this Ray Train worker."""
    return (ResidentImages if mode == "resident" else StreamedImages)(config, manifest, device)


def _torch_batches(name: str, batch_size: int, device: torch.device, **options: Any) -> Iterator[dict[str, Tensor]]:
    warnings.filterwarnings("ignore", message="The given NumPy array is not writ")  # zero-copy views, never written to
    shard = ray.train.get_dataset_shard(name)
    batches = shard.iter_torch_batches(batch_size=batch_size, device=str(device), **options)
    return cast(Iterator[dict[str, Tensor]], iter(batches))
