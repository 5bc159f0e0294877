"""Evaluate a run on any images: assign them, and compute scores where classes are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.sparse import csr_array

from pipeline.clustering.scores import contingency_scores
from pipeline.data.shards import MANIFEST, has_manifest
from pipeline.errors import ConfigError, DataError, first_line
from pipeline.inference.assign import PARTS
from pipeline.progress import Echo
from pipeline.runs.assign import assign_images, group_key, group_sizes
from pipeline.runs.identity import SUMMARY, read_started_run
from pipeline.runs.models import model_uri
from pipeline.storage import Folder, absolute, join
from pipeline.training.health import size_metrics

PARTS_AT_ONCE = 64  # limits how many counts wait to be added up
UNKNOWN = -1  # class of an image without one


def evaluate(
    run: str, data: str | None = None, out: str | None = None, *, gpus: bool | None = None, echo: Echo = print
) -> dict[str, Any]:
    """Assign all images of a source by a trained model, and score the clusters; those with the same name count as one.

    Parameters
    ----------
    run : str
        The model: see `pipeline.runs.models.open_model`.
    data : str, optional
        Folder of shards, or any other source; the run's own shards when absent.
    out : str, optional
        Folder to write to; `evaluation` in the run's folder when absent.
    gpus : bool, optional
        As for `assign_images`.
    echo : callable
        Takes the lines of progress.

    Returns
    -------
    dict
        The summary, as it lies in summary.json of the output folder.

    Raises
    ------
    ConfigError, DataError
        When there is no such model or source.
    """
    if model_uri(run) is not None and (data is None or out is None):
        raise ConfigError(f"{run} is an MLflow model, not a folder; give --data and --out")
    source = data or _own_images(Folder(absolute(run)))
    target = Folder(absolute(out or join(run, "evaluation")))
    summary = assign_images(run, source, target.path, classes=True, gpus=gpus, echo=echo)
    sizes = group_sizes(summary)
    table = contingency(count_assignments(target), [group_key(cluster) for cluster in summary["clusters"]])
    summary |= {
        "scores": contingency_scores(table) if table.nnz else {},
        "health": size_metrics(torch.tensor(list(sizes.values()))),
    }
    target.write(SUMMARY, summary)
    return summary


def _own_images(run: Folder) -> str:
    """The shards that a run was trained on; ConfigError where they are gone."""
    place = read_started_run(run)[0].data.path
    if not has_manifest(place):
        raise ConfigError(
            f"{run.path} was trained on the images in {place}, but that has no {MANIFEST}: the images have moved, or "
            "the run was copied without them; give their folder as --data"
        )
    return place


def count_assignments(target: Folder) -> Counter[tuple[int, int]]:
    """Number of images by (class, cluster), read part by part from the output; the class is -1 where unknown."""
    counts: Counter[tuple[int, int]] = Counter()
    folder = target.subfolder(PARTS)
    parts = [name for name in folder.names("part-") if name.endswith(".parquet")]
    with ThreadPoolExecutor(8) as pool:  # latency dominates such small remote reads
        for first in range(0, len(parts), PARTS_AT_ONCE):
            for found in pool.map(partial(_count_part, folder), parts[first : first + PARTS_AT_ONCE]):
                counts.update(found)
    return counts


def _count_part(folder: Folder, name: str) -> dict[tuple[int, int], int]:
    """Number of images of a part by (class, cluster).

    One Parquet data set of all parts would keep their footers in memory: 24 bytes an image.
    """
    try:
        with folder.files.open_input_file(f"{folder.root}/{name}") as handle:
            table = pq.ParquetFile(handle).read(columns=["label", "cluster"])
    except (OSError, pa.ArrowException) as error:
        remedy = "delete the folder of the evaluation, and run it again"
        raise DataError(f"{folder.file(name)} cannot be read ({first_line(error)}); {remedy}") from error
    pairs = np.stack([table.column(name).to_numpy() for name in ("label", "cluster")])
    unique, counts = np.unique(pairs, axis=1, return_counts=True)
    return {(int(label), int(cluster)): int(n) for (label, cluster), n in zip(unique.T, counts, strict=True)}


def contingency(counts: Counter[tuple[int, int]], keys: Sequence[str | int]) -> csr_array:
    """Images with a known class as a table (classes, groups); clusters with the same key (K,) are a group."""
    groups = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    known = [(label, groups[keys[cluster]], found) for (label, cluster), found in counts.items() if label != UNKNOWN]
    labels, columns, images = np.array(known, np.int64).reshape(-1, 3).T
    return csr_array((images, (labels, columns)), shape=(labels.max(initial=-1) + 1, len(groups)))
