"""Clusters for a whole data set, by Ray Data: rows go from the blocks to Parquet, and never through the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow.dataset as pads
import ray
import torch
from ray.data import Dataset

from pipeline.inference.model import ClusterModel
from pipeline.storage import Folder

Block = dict[str, np.ndarray[Any, Any]]


class Assigner:
    """A Ray Data actor that replaces `image` in blocks by `cluster` and `similarity`.

    Parameters
    ----------
    load : callable
        Gives the model; called once in each actor.
    """

    def __init__(self, load: Callable[[], ClusterModel]) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load().to(self.device)

    def __call__(self, block: Block) -> Block:
        """{"image", ...} to {..., "cluster", "similarity"}."""
        images = torch.from_numpy(np.ascontiguousarray(block.pop("image"))).to(self.device)
        with torch.inference_mode():
            similarity, cluster = self.model(images).max(dim=1)
        return block | {"cluster": cluster.cpu().numpy(), "similarity": similarity.cpu().numpy()}


def assign(images: Dataset, load: Callable[[], ClusterModel], *, batch_size: int, max_actors: int) -> Dataset:
    """Add `cluster` and `similarity` to rows of decoded images, in place of `image`; lazily.

    Parameters
    ----------
    images : Dataset
        With a column `image` of uint8 (S, S, 3).
    load : callable
        Gives the model, in each actor. It is pickled into Ray Data's plan, so it should hold a path and not weights.
    batch_size : int
        Images in a forward pass.
    max_actors : int
        Copies of the model at most.
    """
    cluster = ray.cluster_resources()
    return images.map_batches(
        Assigner,
        fn_constructor_args=[load],
        batch_size=batch_size,
        num_gpus=1 if cluster.get("GPU") else 0,
        num_cpus=1 if cluster["CPU"] >= 2 else 0,  # an actor that took the only CPU would wait for ever to be fed
        concurrency=(1, max_actors),
    )


def read_assignments(folder: Folder, columns: list[str]) -> Iterator[Block]:
    """Columns of the Parquet parts in a folder, batch by batch."""
    parts = pads.dataset(folder.root, filesystem=folder.files, format="parquet")
    for batch in parts.to_batches(columns=columns):
        yield {name: batch.column(name).to_numpy() for name in columns}
