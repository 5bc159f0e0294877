"""What a finished run leaves: summary, assignments, pictures, and the model in MLflow."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from pipeline.alarms import all_alarms
from pipeline.cluster import cluster_facts
from pipeline.config.models import RunConfig
from pipeline.data.decode import decode_table
from pipeline.data.read import has_labels, read_origins, read_sample, regroup
from pipeline.data.shards import Manifest
from pipeline.errors import CheckpointError, ConfigError, UserError
from pipeline.inference.card import TRAINING_CLUSTERS, ModelCard
from pipeline.inference.consensus import trained_model
from pipeline.inference.predict import Prediction, TrainingClusters, measure_clusters
from pipeline.inference.run_features import (
    AGREEMENT,
    feature_blocks,
    keep_last_parts,
    open_features,
    seen_by_model,
)
from pipeline.progress import Echo
from pipeline.report.figures import draw_clusters, draw_curves
from pipeline.runs.identity import SUMMARY
from pipeline.runs.models import open_model, run_card
from pipeline.runs.names import read_names
from pipeline.runs.report import (
    ASSIGNMENTS,
    ATLAS,
    EMBEDDING,
    read_assignments,
    read_totals,
    with_names,
    write_report,
)
from pipeline.serving.mlflow_model import save_mlflow_model
from pipeline.storage import Folder, absolute
from pipeline.tracking import MODEL, RECORD, RunRef, RunWriter, load_ref, records_wait, spool_path
from pipeline.training.checkpoint import newest_in
from pipeline.training.job import Job
from pipeline.training.profile import PROFILE
from pipeline.training.rollback import read_rollbacks
from pipeline.training.timing import ENTRIES

BLOCK_ROWS = 16_384  # in a row group of the assignments: so many are in memory at a time
TILE = 128  # pixels of an image in the picture of the clusters, at most
SAMPLE = 2048  # images that the picture of the clusters chooses from
MLFLOW_BYTES = 64 << 20  # the largest file sent to MLflow: it gets a pointer to a larger one
CLUSTERS, CURVES, LEDGER = "clusters.png", "curves.png", "ledger.json"
OUTPUTS = {
    "summary": SUMMARY,
    "atlas": ATLAS,
    "clusters": CLUSTERS,
    "curves": CURVES,
    "assignments": ASSIGNMENTS,
    "embedding": EMBEDDING,
}
SCORES = ("acc", "nmi", "ari")
log = logging.getLogger(__name__)


def write_artifacts(job: Job, *, reopen: bool = True) -> dict[str, Any]:
    """Write all results of a finished run into its folder and to MLflow; returns the summary.

    The summary is written last: a run that has one is complete. After a kill before that, the same command writes
    everything again. MLflow's run ends with the summary or, without `reopen`, has already ended with the training.
    """
    folder = job.folder
    values = newest_in(folder.path)
    if values is None:
        raise CheckpointError(
            f"run {folder.name} has no readable checkpoint in {folder.path}; run the same command again"
        )
    del values["labels"]  # of all images: nothing below needs them
    keep_last_parts(folder, values["centers"])
    write_assignments(folder, job.config.data.path, job.manifest.num_images, job.plan.num_clusters)
    alarms = [asdict(alarm) for alarm in all_alarms(values["history"], job.alarm_facts)]
    with TemporaryDirectory() as place, RunWriter(job.tracking, spool_path(folder), reopen=reopen) as writer:
        local = Path(place)
        if job.config.profile.steps:
            keep_profile(folder.subfolder(PROFILE), values["history"], local, writer)
        write_results(folder, job.config, job.manifest, values, alarms, local, writer)
        writer.flush()
        summary = summarise(job, values, alarms, writer.ref)
    folder.write(SUMMARY, summary)
    return summary


def write_results(
    folder: Folder,
    config: RunConfig,
    manifest: Manifest,
    values: dict[str, Any],
    alarms: list[dict[str, Any]],
    local: Path,
    writer: RunWriter,
) -> None:
    """Write pictures and the atlas into a run's folder; send them, the assignments and the model to MLflow.

    `values` are those of the run's checkpoint, and `local` is a folder for copies.
    """
    log_file(folder, ASSIGNMENTS, local, writer)
    _keep(draw(folder, config, manifest, values, local), folder, local, writer)
    _keep(write_report(local, folder, config, manifest, values, alarms), folder, local, writer)
    if writer.ref.enabled:
        log_model(trained_model(config, manifest, values).eval(), run_card(folder, config, manifest), local, writer)


def log_model(model: nn.Module, card: ModelCard, local: Path, writer: RunWriter) -> None:
    """Send a model and its card to MLflow, in place of those that it has; `local` is a folder for a copy.

    A model that torch cannot export is left out, with a warning: the other results do not depend on it.
    """
    try:
        save_mlflow_model(local / MODEL, model, card)
    except ConfigError as error:
        log.warning("MLflow gets no model of run %s: %s", writer.ref.name, error)
    else:
        writer.model(local / MODEL)


def send_names(run: str, echo: Echo = print) -> None:
    """Send everything that holds names of clusters to MLflow again: atlas, tables and the model.

    Nothing is sent where the run has no records. When they cannot be sent, or the model is gone, a line says so.
    """
    folder = Folder(absolute(run))
    if not (folder.read(RECORD) or {}).get("uri"):
        return
    try:
        ref, model = load_ref(folder), open_model(folder.path)
    except UserError as error:
        echo(f"MLflow's copies keep the earlier names: {error}")
        return
    with TemporaryDirectory() as place, RunWriter(ref, spool_path(folder), reopen=False) as writer:
        for name in {ATLAS, ASSIGNMENTS, EMBEDDING} & set(folder.names()):
            log_file(folder, name, Path(place), writer)
        log_model(model.module, model.card, Path(place), writer)
    if records_wait(folder):
        echo(f"the names wait for {ref.public_uri}; run `digpro deliver {run}` to send them")
    else:
        echo(f"the names were sent to MLflow at {ref.public_uri}, too")


def _keep(files: list[Path], folder: Folder, local: Path, writer: RunWriter) -> None:
    """Copy local files into the run's folder and to MLflow."""
    for file in files:
        folder.put(file)
        log_file(folder, file.name, local, writer)


def log_file(folder: Folder, name: str, local: Path, writer: RunWriter) -> None:
    """Log a file of the run's folder to MLflow; for a large file log ``<name>.json`` with its location.

    `local` is a folder for a copy.
    """
    place, copy = f"{folder.root}/{name}", local / name
    size = folder.files.get_file_info(place).size
    if size > MLFLOW_BYTES:
        copy = local / f"{name}.json"
        copy.write_text(json.dumps({"file": folder.file(name), "bytes": size}, indent=1))
    elif not copy.exists():
        with folder.files.open_input_stream(place) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
    writer.artifact(copy)


def keep_profile(profile: Folder, history: list[dict[str, float]], local: Path, writer: RunWriter) -> None:
    """Add the ledger of all epochs to what the workers recorded, and send both to MLflow."""
    profile.write(LEDGER, {"epochs": [ledger(metrics) for metrics in history]})
    for name in profile.names():
        (local / name).write_bytes(profile.read_bytes(name))
        writer.artifact(local / name, PROFILE)


def ledger(metrics: dict[str, float]) -> dict[str, float]:
    """Where the time of an epoch went, in seconds."""
    return {name: value for name, value in metrics.items() if name == "epoch" or name.startswith("seconds_")}


def write_assignments(run: Folder, data: str, total: int, num_clusters: int) -> None:
    """Write the clusters' statistics and a row for each of the run's `total` images, in order of the index.

    docs/using.md describes the columns. Rows are written block by block, so that only what `measure_clusters` holds
    grows with the number of images.

    Raises
    ------
    DataError
        When features or shards cannot be read, or there is not one feature for each image.
    """
    clusters, seen = measure_clusters(lambda: _predictions(run, total), num_clusters), seen_by_model(run)
    by_model = measure_clusters(lambda: _predictions(run, total, seen), num_clusters) if seen else clusters
    run.write(TRAINING_CLUSTERS, by_model.model_dump())  # other images are assigned by the model
    blocks = assignment_blocks(run, data, total, clusters)
    first = next(blocks)
    with run.open_output(ASSIGNMENTS) as stream, pq.ParquetWriter(stream, first.schema) as writer:
        for table in itertools.chain([first], blocks):
            writer.write_table(table)


def _predictions(run: Folder, total: int, prefix: str = "") -> Iterator[tuple[Any, Any]]:
    columns = [prefix + "cluster", prefix + "similarity"]
    for table in feature_blocks(run, columns, total):
        cluster, similarity = (table.column(name).to_numpy() for name in columns)
        yield cluster, similarity


def assignment_blocks(run: Folder, data: str, total: int, clusters: TrainingClusters) -> Iterator[pa.Table]:
    """The rows of the assignments, `BLOCK_ROWS` at a time."""
    is_labelled = has_labels(data)
    names = read_names(run)
    agreement = [AGREEMENT] if AGREEMENT in open_features(run).schema.names else []
    features = regroup(feature_blocks(run, [*Prediction._fields, *agreement], total), BLOCK_ROWS)
    for table, origin in zip(features, regroup(read_origins(data), BLOCK_ROWS), strict=True):
        cluster, similarity = table.column("cluster").to_numpy(), table.column("similarity").to_numpy()
        rows = table.add_column(1, "path", origin.column("path"))
        rows = rows.append_column("outlier", pa.array(clusters.outlier(cluster, similarity)))
        rows = rows.append_column("label", origin.column("label")) if is_labelled else rows
        yield with_names(rows, names) if names else rows


def draw(folder: Folder, config: RunConfig, manifest: Manifest, values: dict[str, Any], local: Path) -> list[Path]:
    """Draw the sheet of the clusters from a sample of the images, and the curves of what was trained."""
    sample, decoding = read_sample(config.data.path, manifest, SAMPLE), config.data.decoding
    block = decode_table(sample, **decoding | {"size": min(decoding["size"], TILE)})
    images, index = read_assignments(folder, SAMPLE), block["index"]
    draw_clusters(
        local / CLUSTERS,
        block["image"],
        images.cluster[index],
        images.similarity[index],
        read_totals(folder, len(values["centers"])),
        manifest.class_captions,
    )
    if not values["history"]:
        return [local / CLUSTERS]
    draw_curves(local / CURVES, values["history"])
    return [local / CLUSTERS, local / CURVES]


def summarise(job: Job, values: dict[str, Any], alarms: list[dict[str, Any]], tracking: RunRef) -> dict[str, Any]:
    """Scores, losses, times, paths of the outputs, and what they were made with."""
    history, last = values["history"], values["history"][-1]
    totals = {entry: sum(metrics.get(f"seconds_{entry}", 0.0) for metrics in history) for entry in (*ENTRIES, "epoch")}
    rates = [metrics["images_per_second"] for metrics in history if metrics["epoch"] > 0]
    folder = job.folder
    files = OUTPUTS | ({"profile": PROFILE} if job.config.profile.steps else {})
    return {
        "run": folder.name,
        "folder": folder.path,
        "epochs": values["epoch"],
        "scores": {name: last[name] for name in SCORES if name in last},
        "last_epoch": last,
        "alarms": alarms,
        "rollbacks": read_rollbacks(folder),
        "seconds": totals,
        "images_per_second": float(np.median(rates)),
        "mlflow": {"uri": tracking.public_uri, "run_id": tracking.run_id},
        "outputs": {name: folder.file(file) for name, file in files.items()} | tracking.output,
        "config": job.config.model_dump(mode="json"),
        **cluster_facts(),
    }
