"""The driver's side of a run: configuration in, a finished run out."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.train.v2.api.exceptions import TrainingFailedError

from pipeline.checks.nodes import check_nodes
from pipeline.checks.settings import check_run
from pipeline.checks.storage import check_storage
from pipeline.cluster import connect
from pipeline.config.identity import fingerprint
from pipeline.config.models import RunConfig
from pipeline.data.decode import decode_table
from pipeline.data.ingest import ingest
from pipeline.data.read import read_labels, read_sample
from pipeline.data.shards import MANIFEST, Manifest, read_manifest, validate_shards
from pipeline.errors import CheckpointError, RunFailed
from pipeline.inference.assign import ClusterModel
from pipeline.plan import choose_mode, steps_per_epoch
from pipeline.report.figures import draw_clusters, draw_curves
from pipeline.storage import absolute, filesystem
from pipeline.tracking import RunRef, RunWriter, log_final_model, open_run
from pipeline.training.checkpoint import newest_in
from pipeline.training.fit import fit, new_board, ray_reason
from pipeline.training.progress import ProgressPrinter
from pipeline.training.run_folder import IDENTITY, SUMMARY, RunFolder
from pipeline.training.timing import ENTRIES

Say = Callable[[str], None]


def train(config: RunConfig, *, label: str = "run", say: Say = print) -> dict[str, Any]:
    """Train to the end, or go on where an earlier call with the same configuration stopped.

    Parameters
    ----------
    config : RunConfig
    label : str
        First part of the run's name where the configuration gives none: usually the preset.
    say : callable
        Takes the lines of progress.

    Returns
    -------
    dict
        The summary, as it lies in summary.json of the run's folder.

    Raises
    ------
    ConfigError, DataError
        For what can be known beforehand; nothing has been started then.
    RunFailed
        When workers failed more often than resources.max_failures. The same call goes on from the last checkpoint.
    """
    config = resolve_paths_and_name(config, label)
    check_storage(config.storage)
    manifest = load_or_ingest(config, say)
    check_run(config, manifest)
    folder = RunFolder.claim(config)
    if (summary := folder.read(SUMMARY)) is not None:
        say(f"run {config.name} is already finished; a new one needs another name (--set name=...)")
        return summary
    validate_shards(config.data.path)
    mode, reason = choose_mode(config, manifest)
    say(f"run {config.name}: {manifest.num_images:,} images, {mode} ({reason})")
    tracking = open_run(config, config.storage, folder.name, (folder.read(IDENTITY) or {}).get("mlflow_run"), {})
    folder.update(IDENTITY, mlflow_run=tracking.run_id, manifest=manifest.model_dump(mode="json"))
    connect()
    check_nodes(config)
    board = new_board()
    images = steps_per_epoch(config, manifest) * config.optim.batch_size
    try:
        with ProgressPrinter(board, config, images, say):
            fit(config, manifest, mode, folder, tracking, board)
    except TrainingFailedError as error:
        with contextlib.suppress(OSError):  # a full disk must not hide what happened
            RunWriter(tracking, folder.spool).finish("FAILED")
        raise RunFailed(f"run {folder.name} failed {ray_reason(error)}") from error
    return write_outcome(config, manifest, folder, tracking)


def resolve_paths_and_name(config: RunConfig, label: str) -> RunConfig:
    """The configuration with a name, and with paths that mean the same in every process."""
    return config.model_copy(
        update={
            "name": config.name or f"{label}-{fingerprint(config)}",
            "storage": absolute(config.storage),
            "data": config.data.model_copy(update={"path": absolute(config.data.path)}),
        }
    )


def load_or_ingest(config: RunConfig, say: Say) -> Manifest:
    """The manifest of the run's data set, which is ingested first when it is missing and a source is given."""
    files, root = filesystem(config.data.path)
    if config.data.source is not None and not files.get_file_info(f"{root}/{MANIFEST}").is_file:
        say(f"ingesting {config.data.source} into {config.data.path}")
        connect()
        return ingest(config.data.source, config.data.path)
    return read_manifest(config.data.path)


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
