"""Evaluate a finished run on any shards: assignments for every image, and scores where classes are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.cluster import connect
from pipeline.clustering.scores import clustering_scores
from pipeline.config.models import RunConfig
from pipeline.data.read import read_labels
from pipeline.data.shards import Manifest, read_manifest, validate_shards
from pipeline.data.streaming import decoded_dataset
from pipeline.errors import ConfigError
from pipeline.inference.assign import assign
from pipeline.runs import ASSIGNMENTS, environment_facts
from pipeline.storage import absolute
from pipeline.training.checkpoint import newest_in
from pipeline.training.estep import size_health
from pipeline.training.run_folder import IDENTITY, SUMMARY, RunFolder


def evaluate(run: str, data: str | None = None, out: str | None = None) -> dict[str, Any]:
    """Assign all images of a data set by the newest checkpoint of a run.

    Parameters
    ----------
    run : str
        Folder of the run.
    data : str, optional
        Folder of shards; the run's own when absent.
    out : str, optional
        Folder to write to; `evaluation` in the run's folder when absent.

    Returns
    -------
    dict
        The summary, as it lies in summary.json of the output folder.

    Raises
    ------
    ConfigError
        When `run` is no run's folder, or holds no readable checkpoint.
    DataError
        When `data` is no folder of shards.
    """
    folder = RunFolder.at(absolute(run))
    identity = folder.read(IDENTITY)
    if identity is None or "manifest" not in identity:
        raise ConfigError(f"{run} holds no run; give the folder that has the summary.json of one")
    trained, manifest = RunConfig.model_validate(identity["config"]), Manifest.model_validate(identity["manifest"])
    path = absolute(data) if data else trained.data.path
    manifest_here = read_manifest(path)
    connect()
    values = newest_in(folder.path)
    if values is None:
        raise ConfigError(f"{run} holds no readable checkpoint; run its `digpro train` again, it goes on from there")
    validate_shards(path)
    target = RunFolder.at(absolute(out) if out else f"{folder.path}/evaluation").make()
    config = trained.model_copy(update={"data": trained.data.model_copy(update={"path": path})})
    images = decoded_dataset(config, manifest_here)
    table = _collect(assign(images, trained, manifest, values).iter_batches(batch_format="numpy"), read_labels(path))
    with target.open_output(ASSIGNMENTS) as stream:
        pq.write_table(table, stream)
    summary = _summarise(table, folder, path, target, len(values["centers"]))
    target.write(SUMMARY, summary)
    return summary


def _collect(batches: Any, labels: np.ndarray[Any, Any] | None) -> pa.Table:
    """Assignments by index, with the classes where they are known."""
    parts = list(batches)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(columns["index"])
    columns = {name: values[order] for name, values in columns.items()}
    return pa.table(columns | ({} if labels is None else {"label": labels}))


def _summarise(table: pa.Table, run: RunFolder, data: str, target: RunFolder, clusters: int) -> dict[str, Any]:
    found = table.column("cluster").to_numpy()
    known = "label" in table.column_names
    return {
        "run": run.name,
        "data": data,
        "images": len(found),
        "scores": clustering_scores(table.column("label").to_numpy(), found) if known else {},
        "health": size_health(torch.from_numpy(found.copy()), clusters),
        "outputs": {"summary": f"{target.path}/{SUMMARY}", "assignments": f"{target.path}/{ASSIGNMENTS}"},
        **environment_facts(),
    }
