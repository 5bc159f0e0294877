"""Clusters for images: the trained target network and the centres as one module, over a whole data set by Ray Data."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import torch
from ray.data import Dataset
from torch import Tensor, nn

from pipeline.build import cluster_count, model_for, views_for
from pipeline.config import RunConfig
from pipeline.data.shards import Manifest
from pipeline.method.losses import unit


class ClusterModel(nn.Module):
    """uint8 images (B, H, W, 3) to cosine similarities (B, K) with the cluster centres; the cluster is the argmax."""

    centers: Tensor

    def __init__(self, config: RunConfig, manifest: Manifest, values: dict[str, Any]) -> None:
        super().__init__()
        model = model_for(config, cluster_count(config, manifest), torch.device("cpu"))
        model.load_state_dict(values["model"], strict=False)  # the bank stays behind
        self.network = model.networks.target.eval()
        self.views = views_for(config, manifest)
        self.register_buffer("centers", unit(values["centers"]))

    def forward(self, images: Tensor) -> Tensor:
        """Similarities, in [-1, 1]."""
        return unit(self.network(self.views.plain(images))) @ self.centers.T


class Assigner:
    """A Ray Data actor that adds `cluster` and `similarity` to blocks of images."""

    def __init__(self, config: RunConfig, manifest: Manifest, values: dict[str, Any]) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = ClusterModel(config, manifest, values).to(self.device)

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
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    return images.map_batches(
        Assigner,
        fn_constructor_args=[config, manifest, ray.put(values)],
        batch_size=config.estep.batch_size,
        num_gpus=gpus,
        num_cpus=1,
        concurrency=(1, config.resources.workers),
    )
