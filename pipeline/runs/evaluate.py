"""Evaluating a run on any shards: the cluster of every image, and scores where classes are known."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import torch

from pipeline.cluster import cluster_facts, connect
from pipeline.clustering.scores import contingency_scores
from pipeline.config.models import RunConfig
from pipeline.data.quiet import cpp_log_lines_hidden
from pipeline.data.read import has_labels
from pipeline.data.shards import Manifest, read_manifest, validate_shards
from pipeline.data.streaming import decoded_dataset, quiet_data_context
from pipeline.errors import ConfigError
from pipeline.inference.assign import assign, read_assignments
from pipeline.inference.model import ClusterModel
from pipeline.lease import hold
from pipeline.runs.artifacts import ASSIGNMENTS
from pipeline.runs.identity import SUMMARY, read_started_run
from pipeline.storage import Folder, absolute
from pipeline.training.checkpoint import newest_in
from pipeline.training.health import size_metrics

UNKNOWN = -1  # class of an image without one
Counts = np.ndarray[Any, np.dtype[np.int64]]


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
        When `run` is not a run's folder, or holds no readable checkpoint.
    DataError
        When `data` is not a folder of shards.
    """
    folder = Folder(absolute(run))
    trained, _ = read_started_run(folder)
    path = absolute(data) if data else trained.data.path
    here = read_manifest(path)
    connect()
    clusters = len(load_model(folder.path).centers)
    validate_shards(path)
    target = Folder(absolute(out) if out else f"{folder.path}/evaluation").make()
    labelled = has_labels(path)
    with hold(target):
        write_assignments(trained, folder, path, here, target, labelled)
        summary = summarise(folder, path, target, count_assignments(target, labelled), clusters)
        target.write(SUMMARY, summary)
    return summary


def load_model(run: str) -> ClusterModel:
    """The model of a run's newest checkpoint; ConfigError when none can be read. Also called on the nodes."""
    config, manifest = read_started_run(Folder(run))
    values = newest_in(run)
    if values is None:
        raise ConfigError(f"{run} holds no readable checkpoint; run its `digpro train` again, it resumes from there")
    return ClusterModel(config, manifest, values).eval()


def write_assignments(
    config: RunConfig, run: Folder, path: str, manifest: Manifest, target: Folder, labelled: bool
) -> None:
    """Assign the shards at `path`; the rows go from Ray Data's blocks to Parquet files in a folder of `target`."""
    quiet_data_context()
    columns = ["image", "index", "label"] if labelled else ["image", "index"]
    images = decoded_dataset(path, manifest, config.data.decoding, columns=columns)
    most, load = config.resources.worker_range.max, partial(load_model, run.path)
    rows = assign(images, load, batch_size=config.estep.batch_size, max_actors=most)
    place = f"{target.root}/{ASSIGNMENTS}"
    if target.files.get_file_info(place).is_file:  # of a version that wrote one file
        target.files.delete_file(place)
    with cpp_log_lines_hidden():  # one warns that actors could lose their arguments, whatever these are
        rows.write_parquet(place, filesystem=target.files, mode="overwrite")


def count_assignments(target: Folder, labelled: bool) -> Counter[tuple[int, int]]:
    """Images by (class, cluster), read batch by batch from what was written; the class is -1 where none is known."""
    counts: Counter[tuple[int, int]] = Counter()
    for block in read_assignments(target.subfolder(ASSIGNMENTS), ["label", "cluster"] if labelled else ["cluster"]):
        classes = block["label"] if labelled else np.full_like(block["cluster"], UNKNOWN)
        pairs, found = np.unique(np.stack([classes, block["cluster"]]), axis=1, return_counts=True)
        counts.update({(int(label), int(cluster)): int(n) for (label, cluster), n in zip(pairs.T, found, strict=True)})
    return counts


def contingency(counts: Counter[tuple[int, int]], clusters: int) -> Counts:
    """Images with a known class as a table (classes, clusters)."""
    classes = sorted({label for label, _ in counts if label != UNKNOWN})
    table = np.zeros((len(classes), clusters), dtype=np.int64)
    for (label, cluster), found in counts.items():
        if label != UNKNOWN:
            table[classes.index(label), cluster] += found
    return table


def summarise(
    run: Folder, data: str, target: Folder, counts: Counter[tuple[int, int]], clusters: int
) -> dict[str, Any]:
    """Scores, sizes, and where things are."""
    sizes = torch.zeros(clusters, dtype=torch.int64)
    for (_, cluster), found in counts.items():
        sizes[cluster] += found
    table = contingency(counts, clusters)
    return {
        "run": run.name,
        "data": data,
        "images": int(sizes.sum()),
        "scores": contingency_scores(table) if len(table) else {},
        "health": size_metrics(sizes),
        "outputs": {"summary": f"{target.path}/{SUMMARY}", "assignments": f"{target.path}/{ASSIGNMENTS}"},
        **cluster_facts(),
    }
