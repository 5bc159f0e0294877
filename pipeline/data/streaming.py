"""Ray Data's part of the feed: shards read and decoded for all workers of a run.

Resident mode: every worker receives the decoded set once (`fetch_all_images`) and keeps it. Streaming mode: Ray Data
reads and decodes the shards anew each epoch and splits them over the workers. The order comes from the file order and
a local buffer, both reseeded each epoch; a resume skips what was consumed, which repeats the order as long as the
number of workers stays.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import ray.data
import ray.train
import torch
from ray.data import DataContext, Dataset, ExecutionOptions, FileShuffleConfig
from ray.train import DataConfig
from torch import Tensor

from pipeline.collectives import equal_rows, world_size
from pipeline.config.models import RunConfig
from pipeline.data.decode import decode_table
from pipeline.data.loader import Batch, Inputs, ResidentImages, epoch_seed
from pipeline.data.sampling import balanced_batches
from pipeline.data.shards import Manifest
from pipeline.ray_private import own_execution_options, set_execution_count
from pipeline.storage import filesystem

BLOCK_BYTES = 8 << 20  # small enough that a streaming epoch starts after one block, not after the whole set
FETCH_ROWS = 4096  # images that a worker takes from Ray Data at a time when it fetches the whole set


def decoded_dataset(
    path: str,
    manifest: Manifest,
    decoding: Mapping[str, Any],
    *,
    shuffle_seed: int | None = None,
    columns: Sequence[str] = ("image", "index"),
) -> Dataset:
    """The shards at `path` as blocks of {"image": uint8 (n, S, S, 3), "index": int64 (n,)}, lazily.

    `decoding` holds the arguments of `decode_table`.

    With `shuffle_seed` the files come in another order each time the plan runs, by the seed and the run's number.
    """
    files, root = filesystem(path)
    shuffle = None if shuffle_seed is None else FileShuffleConfig(seed=shuffle_seed, reseed_after_execution=True)
    table = ray.data.read_parquet(
        [f"{root}/{shard.file}" for shard in manifest.shards],
        filesystem=files,
        shuffle=shuffle,
    )
    return table.select_columns(list(columns)).map_batches(
        decode_table, batch_format="pyarrow", fn_kwargs=dict(decoding), batch_size=512
    )


def quiet_data_context() -> DataContext:
    """Ray Data's settings for this process, without progress bars."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    return context


def build_datasets(
    config: RunConfig, manifest: Manifest, mode: str, run_folder: str
) -> tuple[dict[str, Dataset], DataConfig]:
    """What a TorchTrainer needs to feed a mode; called in the driver, whose materialised blocks survive restarts."""
    if mode == "features":  # which workers read by themselves
        return {}, DataConfig()
    quiet_data_context().target_max_block_size = BLOCK_BYTES
    options = ExecutionOptions(preserve_order=True)
    path, decoding = config.data.path, config.data.decoding
    if mode == "resident":
        whole = decoded_dataset(path, manifest, decoding).materialize()
        return {"images": whole}, DataConfig(datasets_to_split=[], execution_options=options)
    datasets = {
        "epoch": decoded_dataset(path, manifest, decoding, shuffle_seed=config.seed),
        "blocks": decoded_dataset(path, manifest, decoding),
    }
    return datasets, _StreamingDataConfig(options, run_folder)


class _StreamingDataConfig(DataConfig):
    """Equal splits for training, all rows for the E-step, and the shuffle's epoch counter set after a restart."""

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
            dataset.context.execution_options = own_execution_options(self, name)
            set_execution_count(dataset.context, epochs)
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


class StreamedImages:
    """Batches that Ray Data reads, decodes and splits anew each epoch."""

    def __init__(self, config: RunConfig, steps_per_epoch: int, device: torch.device) -> None:
        self.config, self.steps, self.device = config, steps_per_epoch, device
        if config.optim.batch_size % world_size():
            raise ValueError(
                f"optim.batch_size={config.optim.batch_size} does not divide by the {world_size()} workers; "
                "streaming needs equal shares (resident mode does not)"
            )

    def epoch(self, epoch: int, first_step: int = 0, weights: Tensor | None = None) -> Iterator[Batch]:
        """The stream's order; what an interrupted run had consumed is read again and skipped."""
        local = self.config.optim.batch_size // world_size()
        batches = self._plain(epoch, local) if weights is None else self._balanced(epoch, local, weights)
        for step, batch in enumerate(batches):  # to its end: an epoch left early would not count for Ray's reseeding
            if first_step <= step < self.steps:
                yield batch

    def _plain(self, epoch: int, local: int) -> Iterator[Batch]:
        """Each image once."""
        stream = self._read(
            local,
            self.device,
            drop_last=True,
            local_shuffle_buffer_size=max(self.config.data.shuffle_buffer, local),
            local_shuffle_seed=epoch_seed(self.config.seed, epoch),
        )
        for batch in stream:
            yield Batch(batch["image"], batch["index"], equal_rows(local))

    def _balanced(self, epoch: int, local: int, weights: Tensor) -> Iterator[Batch]:
        """Each image as often as its weight says; the shuffle comes after the copies, and so is not Ray Data's."""
        stream = self._read(local, torch.device("cpu"))
        batches = balanced_batches(
            ((batch["image"], batch["index"]) for batch in stream),
            weights,
            seed=self.config.seed,
            epoch=epoch,
            size=local,
            steps=self.steps,
            buffer=self.config.data.shuffle_buffer,
        )
        for images, keys in batches:
            keys = keys.to(self.device)
            yield Batch(images.to(self.device), keys % len(weights), equal_rows(local), keys)

    def _read(self, local: int, device: torch.device, **options: Any) -> Iterator[dict[str, Tensor]]:
        """This worker's part of an epoch."""
        return _torch_batches("epoch", local, device, prefetch_batches=self.config.data.prefetch_batches, **options)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Whatever part of the set Ray Data hands to this worker."""
        for batch in _torch_batches("blocks", self.config.estep.batch_size, self.device):
            yield batch["image"], batch["index"]


def worker_images(config: RunConfig, num_images: int, mode: str, device: torch.device) -> Inputs:
    """The images of this Ray Train worker, in a mode."""
    if mode == "streaming":
        return StreamedImages(config, num_images // config.optim.batch_size, device)
    images = fetch_all_images(num_images, config.data.decoding["size"], device)
    return ResidentImages(
        images, seed=config.seed, batch_size=config.optim.batch_size, block_size=config.estep.batch_size
    )


def fetch_all_images(count: int, size: int, device: torch.device) -> Tensor:
    """The decoded set (count, size, size, 3) uint8 on a device, from the data set that Ray Train hands to a worker.

    Raises
    ------
    RuntimeError
        When images are missing.
    """
    images = torch.empty((count, size, size, 3), dtype=torch.uint8, device=device)
    arrived = torch.zeros(count, dtype=torch.bool)
    for batch in _torch_batches("images", FETCH_ROWS, device):
        images[batch["index"]] = batch["image"]
        arrived[batch["index"].cpu()] = True
    if not arrived.all():
        raise RuntimeError(f"{int((~arrived).sum())} of {count} images did not arrive; ingest the source again")
    return images


def _torch_batches(name: str, batch_size: int, device: torch.device, **options: Any) -> Iterator[dict[str, Tensor]]:
    warnings.filterwarnings("ignore", message="The given NumPy array is not writ")  # zero-copy views, never written to
    shard = ray.train.get_dataset_shard(name)
    batches = shard.iter_torch_batches(batch_size=batch_size, device=str(device), **options)
    return cast(Iterator[dict[str, Tensor]], iter(batches))
