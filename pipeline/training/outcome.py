"""What a finished run leaves: summary, assignments, pictures, and the model in MLflow."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from pipeline.config import RunConfig
from pipeline.data.decode import decode_table
from pipeline.data.read import read_labels, read_sample
from pipeline.data.shards import Manifest
from pipeline.inference.assign import ClusterModel
from pipeline.inference.report import draw_clusters, draw_curves
from pipeline.tracking import RunRef, RunWriter, log_final_model
from pipeline.training.checkpoint import CheckpointError, newest_in
from pipeline.training.ledger import ENTRIES
from pipeline.training.run_folder import SUMMARY, RunFolder

SAMPLE = 2048  # images that the picture of the clusters chooses from
ASSIGNMENTS, CLUSTERS, CURVES = "assignments.parquet", "clusters.png", "curves.png"
OUTPUTS = {"summary": SUMMARY, "clusters": CLUSTERS, "curves": CURVES, "assignments": ASSIGNMENTS}
VERSIONS = ("digpro-ray", "ray", "torch", "torchvision", "pyarrow", "mlflow", "scikit-learn", "kornia")
Array = np.ndarray[Any, Any]


def write_outcome(config: RunConfig, manifest: Manifest, folder: RunFolder, tracking: RunRef) -> dict[str, Any]:
    """Write all that a finished run leaves into its folder and to MLflow; returns the summary.

    The summary is written last: a run that has one is complete, and a kill before it makes the same command write
    everything again.
    """
    values = newest_in(folder.path)
    if values is None:
        raise CheckpointError(
            f"run {folder.name} left no readable checkpoint in {folder.path}; start the command again"
        )
    labels = read_labels(config.data.path)
    with TemporaryDirectory() as local, RunWriter(tracking, folder.spool) as writer:
        model = ClusterModel(config, manifest, values).eval()
        images = draw(config, manifest, model, values, labels, Path(local))
        table = {"index": np.arange(len(values["labels"])), "cluster": values["labels"].numpy()}
        pq.write_table(pa.table(table | ({} if labels is None else {"label": labels})), Path(local, ASSIGNMENTS))
        for file in (CLUSTERS, CURVES, ASSIGNMENTS):
            writer.artifact(Path(local, file))
            with folder.open_output(file) as stream:
                stream.write(Path(local, file).read_bytes())
        log_final_model(writer, model, images)
        summary = summarise(config, folder, values, writer.ref)
    folder.write(SUMMARY, summary)
    return summary


def draw(
    config: RunConfig,
    manifest: Manifest,
    model: ClusterModel,
    values: dict[str, Any],
    labels: Array | None,
    local: Path,
) -> Array:
    """Write the two pictures; returns the sample of images that they were made from."""
    block = decode_table(read_sample(config.data.path, manifest, SAMPLE), config.data.image_size)
    with torch.inference_mode():
        similarity = torch.cat([model(part) for part in torch.from_numpy(block["image"]).split(256)])
    clusters = values["labels"].numpy()
    index, sizes = block["index"], np.bincount(clusters, minlength=similarity.shape[1])
    own = similarity.numpy()[np.arange(len(index)), clusters[index]]
    sample_labels = None if labels is None else labels[index]
    draw_clusters(local / CLUSTERS, block["image"], clusters[index], own, sizes, sample_labels, manifest.class_names)
    draw_curves(local / CURVES, values["history"])
    return block["image"]


def summarise(config: RunConfig, folder: RunFolder, values: dict[str, Any], tracking: RunRef) -> dict[str, Any]:
    """Scores, losses, times, where things are, and what they were made with."""
    history, last = values["history"], values["history"][-1]
    totals = {entry: sum(page[f"seconds_{entry}"] for page in history) for entry in (*ENTRIES, "epoch")}
    return {
        "run": folder.name,
        "folder": folder.path,
        "epochs": values["epoch"],
        "scores": {name: last[name] for name in ("acc", "nmi", "ari") if name in last},
        "last_epoch": last,
        "seconds": totals,
        "images_per_second": float(np.median([page["images_per_second"] for page in history if page["epoch"] > 0])),
        "mlflow": {"uri": tracking.uri, "run_id": tracking.run_id},
        "outputs": {name: f"{folder.path}/{file}" for name, file in OUTPUTS.items()} | {"mlflow": tracking.uri},
        "config": config.model_dump(mode="json"),
        **environment_facts(),
    }


def environment_facts() -> dict[str, Any]:
    """Versions, and the hardware of the connected cluster."""
    resources = ray.cluster_resources()
    return {
        "hardware": {
            "machine_cpus": os.cpu_count(),
            "cluster_cpus": resources.get("CPU", 0),
            "cluster_gpus": resources.get("GPU", 0),
            "cluster_nodes": len(ray.nodes()),
        },
        "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
    }
