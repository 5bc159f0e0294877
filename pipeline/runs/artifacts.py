"""What a finished run leaves: summary, assignments, pictures, and the model in MLflow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.alarms import all_alarms
from pipeline.cluster import cluster_facts
from pipeline.data.decode import decode_table
from pipeline.data.read import read_labels, read_sample
from pipeline.errors import CheckpointError
from pipeline.features.cache import read_first
from pipeline.inference.model import ClusterModel
from pipeline.report.figures import draw_clusters, draw_curves
from pipeline.runs.identity import SUMMARY
from pipeline.storage import Folder
from pipeline.tracking import RunRef, RunWriter, log_final_model, spool_path
from pipeline.training.checkpoint import newest_in
from pipeline.training.job import Job
from pipeline.training.rollback import read_rollbacks
from pipeline.training.timing import ENTRIES

TILE = 128  # pixels of an image in the picture of the clusters, at most
SAMPLE = 2048  # images that the picture of the clusters chooses from
ASSIGNMENTS, CLUSTERS, CURVES = "assignments.parquet", "clusters.png", "curves.png"
OUTPUTS = {"summary": SUMMARY, "clusters": CLUSTERS, "curves": CURVES, "assignments": ASSIGNMENTS}
Array = np.ndarray[Any, Any]


def write_artifacts(job: Job) -> dict[str, Any]:
    """Write all that a finished run leaves into its folder and to MLflow; returns the summary.

    The summary is written last: a run that has one is complete, and after a kill before it the same command writes
    everything again.
    """
    folder = job.folder
    values = newest_in(folder.path)
    if values is None:
        raise CheckpointError(
            f"run {folder.name} left no readable checkpoint in {folder.path}; start the command again"
        )
    labels = read_labels(job.config.data.path)
    with TemporaryDirectory() as local, RunWriter(job.tracking, spool_path(folder)) as writer:
        model = ClusterModel(job.config, job.manifest, values).eval()
        images = draw(job, model, values, labels, Path(local))
        table = {"index": np.arange(len(values["labels"])), "cluster": values["labels"].numpy()}
        pq.write_table(pa.table(table | ({} if labels is None else {"label": labels})), Path(local, ASSIGNMENTS))
        for file in (CLUSTERS, CURVES, ASSIGNMENTS):
            writer.artifact(Path(local, file))
            with folder.open_output(file) as stream:
                stream.write(Path(local, file).read_bytes())
        log_final_model(writer, model, images)
        summary = summarise(job, values, writer.ref)
    folder.write(SUMMARY, summary)
    return summary


def draw(job: Job, model: ClusterModel, values: dict[str, Any], labels: Array | None, local: Path) -> Array:
    """Write the two pictures; returns two images as the model takes them."""
    table, decoding = read_sample(job.config.data.path, job.manifest, SAMPLE), job.config.data.decoding
    similarity = sample_similarities(job, model, table)
    block = decode_table(table, **decoding | {"size": min(decoding["size"], TILE)})
    clusters, index = values["labels"].numpy(), block["index"]
    draw_clusters(
        local / CLUSTERS,
        block["image"],
        clusters[index],
        similarity.numpy()[np.arange(len(index)), clusters[index]],
        np.bincount(clusters, minlength=similarity.shape[1]),
        None if labels is None else labels[index],
        job.manifest.class_names,
    )
    draw_curves(local / CURVES, values["history"])
    return decode_table(table.slice(0, 2), **decoding)["image"]


@torch.inference_mode()
def sample_similarities(job: Job, model: ClusterModel, table: pa.Table) -> torch.Tensor:
    """Similarities (n, K) of the first n images, from their cached features where there are some."""
    if job.features is not None:
        return model.similarities(torch.from_numpy(read_first(Folder(job.features), table.num_rows)[:, 0]))
    images = torch.from_numpy(decode_table(table, **job.config.data.decoding)["image"])
    return torch.cat([model(part) for part in images.split(256)])


def summarise(job: Job, values: dict[str, Any], tracking: RunRef) -> dict[str, Any]:
    """Scores, losses, times, where things are, and what they were made with."""
    history, last = values["history"], values["history"][-1]
    totals = {entry: sum(metrics.get(f"seconds_{entry}", 0.0) for metrics in history) for entry in (*ENTRIES, "epoch")}
    rates = [metrics["images_per_second"] for metrics in history if metrics["epoch"] > 0]
    folder = job.folder
    return {
        "run": folder.name,
        "folder": folder.path,
        "epochs": values["epoch"],
        "scores": {name: last[name] for name in ("acc", "nmi", "ari") if name in last},
        "last_epoch": last,
        "alarms": [asdict(alarm) for alarm in all_alarms(history, job.alarm_facts)],
        "rollbacks": read_rollbacks(folder),
        "seconds": totals,
        "images_per_second": float(np.median(rates)),
        "mlflow": {"uri": tracking.public_uri, "run_id": tracking.run_id},
        "outputs": {name: f"{folder.path}/{file}" for name, file in OUTPUTS.items()} | tracking.output,
        "config": job.config.model_dump(mode="json"),
        **cluster_facts(),
    }
