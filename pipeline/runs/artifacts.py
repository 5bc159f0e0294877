"""What a finished run leaves: summary, assignments, pictures, and the model in MLflow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.alarms import all_alarms
from pipeline.cluster import cluster_facts
from pipeline.data.decode import decode_table
from pipeline.data.read import read_labels, read_paths, read_sample
from pipeline.errors import CheckpointError
from pipeline.inference.card import TRAINING_CLUSTERS
from pipeline.inference.embedding import embedding, keep_complete_parts
from pipeline.inference.model import ClusterModel
from pipeline.inference.predict import Prediction, TrainingClusters, measure_clusters
from pipeline.report.figures import draw_clusters, draw_curves
from pipeline.runs.identity import SUMMARY
from pipeline.runs.models import run_card
from pipeline.runs.report import ASSIGNMENTS, ATLAS, EMBEDDING, write_report
from pipeline.serving.mlflow_model import save_mlflow_model
from pipeline.storage import Folder
from pipeline.tracking import MODEL, RunRef, RunWriter, spool_path
from pipeline.training.checkpoint import newest_in
from pipeline.training.job import Job
from pipeline.training.profile import PROFILE
from pipeline.training.rollback import read_rollbacks
from pipeline.training.timing import ENTRIES

TILE = 128  # pixels of an image in the picture of the clusters, at most
SAMPLE = 2048  # images that the picture of the clusters chooses from
CLUSTERS, CURVES, LEDGER = "clusters.png", "curves.png", "ledger.json"
OUTPUTS = {
    "summary": SUMMARY,
    "atlas": ATLAS,
    "clusters": CLUSTERS,
    "curves": CURVES,
    "assignments": ASSIGNMENTS,
    "embedding": EMBEDDING,
}


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
    keep_complete_parts(folder)
    alarms = [asdict(alarm) for alarm in all_alarms(values["history"], job.alarm_facts)]
    with TemporaryDirectory() as place, RunWriter(job.tracking, spool_path(folder)) as writer:
        local = Path(place)
        _keep(write_clusters(job, values, local), folder, writer)
        _keep(write_report(local, folder, job.config, job.manifest, values, alarms), folder, writer)
        if job.config.profile.steps:
            keep_profile(folder.subfolder(PROFILE), values["history"], local, writer)
        if writer.ref.enabled:
            model = ClusterModel(job.config, job.manifest, values).eval()
            save_mlflow_model(local / MODEL, model, run_card(folder, job.config, job.manifest))
            writer.model(local / MODEL)
        summary = summarise(job, values, alarms, writer.ref)
    folder.write(SUMMARY, summary)
    return summary


def _keep(files: list[Path], folder: Folder, writer: RunWriter) -> None:
    """Copy local files into the run's folder and to MLflow."""
    for file in files:
        writer.artifact(file)
        with folder.open_output(file.name) as stream:
            stream.write(file.read_bytes())


def keep_profile(profile: Folder, history: list[dict[str, float]], local: Path, writer: RunWriter) -> None:
    """Add the ledger of all epochs to what the workers recorded, and send both to MLflow."""
    profile.write(LEDGER, {"epochs": [ledger(metrics) for metrics in history]})
    for name in profile.names():
        with profile.files.open_input_file(f"{profile.root}/{name}") as stream:
            (local / name).write_bytes(stream.read())
        writer.artifact(local / name, PROFILE)


def ledger(metrics: dict[str, float]) -> dict[str, float]:
    """Where the time of an epoch went, in seconds."""
    return {name: value for name, value in metrics.items() if name == "epoch" or name.startswith("seconds_")}


def write_clusters(job: Job, values: dict[str, Any], local: Path) -> list[Path]:
    """Write the assignments and the pictures into a local folder, and the clusters' statistics into the run's."""
    table, clusters = assignments(job.folder, job.config.data.path, job.plan.num_clusters)
    job.folder.write(TRAINING_CLUSTERS, clusters.model_dump())
    pq.write_table(table, local / ASSIGNMENTS)
    draw(job, table, local)
    draw_curves(local / CURVES, values["history"])
    return [local / name for name in (CLUSTERS, CURVES, ASSIGNMENTS)]


def assignments(run: Folder, data: str, num_clusters: int) -> tuple[pa.Table, TrainingClusters]:
    """A row for each image of the run, in order of the index, as docs/using.md describes them; and the clusters."""
    table = embedding(run).to_table(columns=["index", *Prediction._fields])
    cluster, similarity = table.column("cluster").to_numpy(), table.column("similarity").to_numpy()
    clusters = measure_clusters(cluster, similarity, num_clusters)
    paths = pa.chunked_array([chunk for column in read_paths(data) for chunk in column.chunks])
    table = table.add_column(1, "path", paths)
    table = table.append_column("outlier", pa.array(clusters.outlier(cluster, similarity)))
    labels = read_labels(data)
    return table if labels is None else table.append_column("label", pa.array(labels)), clusters


def draw(job: Job, table: pa.Table, local: Path) -> None:
    """Draw the sheet of the clusters from a sample of the images."""
    sample, decoding = read_sample(job.config.data.path, job.manifest, SAMPLE), job.config.data.decoding
    block = decode_table(sample, **decoding | {"size": min(decoding["size"], TILE)})
    rows = {name: table.column(name).to_numpy() for name in ("cluster", "similarity")}
    labels = table.column("label").to_numpy() if "label" in table.column_names else None
    index = block["index"]
    draw_clusters(
        local / CLUSTERS,
        block["image"],
        rows["cluster"][index],
        rows["similarity"][index],
        np.bincount(rows["cluster"], minlength=job.plan.num_clusters),
        None if labels is None else labels[index],
        job.manifest.class_captions,
    )


def summarise(job: Job, values: dict[str, Any], alarms: list[dict[str, Any]], tracking: RunRef) -> dict[str, Any]:
    """Scores, losses, times, where things are, and what they were made with."""
    history, last = values["history"], values["history"][-1]
    totals = {entry: sum(metrics.get(f"seconds_{entry}", 0.0) for metrics in history) for entry in (*ENTRIES, "epoch")}
    rates = [metrics["images_per_second"] for metrics in history if metrics["epoch"] > 0]
    folder = job.folder
    files = OUTPUTS | ({"profile": PROFILE} if job.config.profile.steps else {})
    return {
        "run": folder.name,
        "folder": folder.path,
        "epochs": values["epoch"],
        "scores": {name: last[name] for name in ("acc", "nmi", "ari") if name in last},
        "last_epoch": last,
        "alarms": alarms,
        "rollbacks": read_rollbacks(folder),
        "seconds": totals,
        "images_per_second": float(np.median(rates)),
        "mlflow": {"uri": tracking.public_uri, "run_id": tracking.run_id},
        "outputs": {name: f"{folder.path}/{file}" for name, file in files.items()} | tracking.output,
        "config": job.config.model_dump(mode="json"),
        **cluster_facts(),
    }
