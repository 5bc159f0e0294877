"""Clusters for images: the trained target network and the centres as one module, over a whole data set by Ray Data."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import torch
from ray.data import Dataset
from torch import Tensor, nn

from pipeline.build import build_model, build_views
from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.method.losses import unit
from pipeline.plan import cluster_count

TARGET = "networks.target."  # beginning of the target network's names in a checkpoint


class ClusterModel(nn.Module):
    """uint8 images (B, H, W, 3) to cosine similarities (B, K) with the cluster centres; the cluster is the argmax.

    Built from a run's configuration and manifest and the `values` of one of its checkpoints.
    """

    centers: Tensor

    def __init__(self, config: RunConfig, manifest: Manifest, values: dict[str, Any]) -> None:
        super().__init__()
        network = build_model(config, cluster_count(config, manifest), torch.device("cpu")).networks.target.float()
        weights = {name: value for name, value in values["model"].items() if name.startswith(TARGET)}
        network.load_state_dict({name.removeprefix(TARGET): value for name, value in weights.items()})
        self.network = network.eval()
        self.views = build_views(config, manifest)
        self.register_buffer("centers", unit(values["centers"].float()))

    def forward(self, images: Tensor) -> Tensor:
        """Similarities, in [-1, 1]."""
        return unit(self.network(self.views.plain(images))) @ self.centers.T


class Assigner:
    """A Ray Data actor that adds `cluster` and `similarity` to blocks of images."""

    def __init__(self, model: ClusterModel) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)

    def __call__(self, block: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """{"image", "index"} to {"index", "cluster", "similarity"}."""
        images = torch.from_numpy(np.ascontiguousarray(block["image"])).to(self.device)
        with torch.inference_mode():
            similarity, cluster = self.model(images).max(dim=1)
        return {"index": block["index"], "cluster": cluster.cpu().numpy(), "similarity": similarity.cpu().numpy()}


def assign(images: Dataset, config: RunConfig, manifest: Manifest, values: dict[str, Any]) -> Dataset:
    """Rows {"index", "cluster", "similarity"} for decoded images, lazily.

    `config`, `manifest` and `values` are those the model was trained with: they fix its shape and normalisation.
    """
    cluster = ray.cluster_resources()
    return images.map_batches(
        Assigner,
        fn_constructor_args=[ClusterModel(config, manifest, values)],
        batch_size=config.estep.batch_size,
        num_gpus=1 if cluster.get("GPU") else 0,
        num_cpus=1 if cluster["CPU"] >= 2 else 0,  # an actor that took the only CPU would wait for ever to be fed
        concurrency=(1, config.resources.worker_range.max),
    )
