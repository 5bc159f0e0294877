"""Combine several runs on the same images into one: their consensus, a run like any other.

The clusters of the members are matched with those of the first, and the members vote on each image. An image's features
are those of all members side by side; the centre of a cluster is their mean over the images that most members put
there; and an image belongs to the nearest centre. Time and memory grow with the number of images, not with its square,
and new images are assigned by the same rule.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.clustering.agreement import count_pairs, majority, matched_to_first
from pipeline.clustering.label_free import contingency_agreement
from pipeline.clustering.scores import clustering_scores
from pipeline.config.models import RunConfig
from pipeline.data.read import read_labels, regroup
from pipeline.data.shards import Manifest, validate_shards
from pipeline.errors import ConfigError
from pipeline.inference.consensus import MEMBERS, member_values, share_backbones, side_by_side
from pipeline.inference.run_features import (
    AGREEMENT,
    clusters_of_images,
    feature_blocks,
    feature_table,
    features_of,
    keep_last_parts,
    seen_by_model,
    write_part,
)
from pipeline.lease import hold
from pipeline.method.losses import unit
from pipeline.progress import Echo
from pipeline.provenance import versions
from pipeline.runs.artifacts import CURVES, OUTPUTS, SCORES, write_assignments, write_results
from pipeline.runs.compare import same_images
from pipeline.runs.identity import IDENTITY, SUMMARY, read_started_run, record_members
from pipeline.runs.models import read_values
from pipeline.runs.names import copy_names
from pipeline.storage import Folder, Place, absolute, check_writable
from pipeline.tracking import RunWriter, open_run, spool_path
from pipeline.training.checkpoint import keep_consensus
from pipeline.training.health import size_metrics

BLOCK_ROWS = 8192  # images whose features are in memory at a time
Array = np.ndarray[Any, Any]


def combine(references: Sequence[str], out: str, *, echo: Echo = print) -> dict[str, Any]:
    """Combine finished runs into one; the same call shows the result of an earlier one.

    Parameters
    ----------
    references : sequence of str
        Folders of two finished runs or more. The consensus has the number of clusters of the first, and their numbers
        and names.
    out : str
        Folder of the new run, local or URI.
    echo : callable
        Takes the lines of progress.

    Returns
    -------
    dict
        The summary, as it lies in summary.json of the run's folder.

    Raises
    ------
    ConfigError
        When the runs cannot be combined, or the folder belongs to another run.
    DataError
        When a member is not finished, or its features or the shards cannot be read.
    """
    members, run = [Folder(absolute(reference)) for reference in references], Folder(absolute(out))
    if (summary := _finished(run, members)) is not None:
        echo(f"{run.path} already holds the consensus of these runs")
        return summary
    config, manifest = _common_settings(members)
    values = [_read_member(member, members[0], config) for member in members]
    share_backbones(values)
    check_writable(run.path, "--out")
    place = Place.parse(run.path)
    config = config.model_copy(update={"name": place.name, "storage": str(place.parent)})
    with hold(run.make(), "choose another folder (--out)"):
        return _combine(members, values, run, config, manifest, echo)


def _common_settings(members: Sequence[Folder]) -> tuple[RunConfig, Manifest]:
    """Configuration and manifest of the first run; ConfigError when there are too few, or on different images."""
    if len(members) < 2:
        raise ConfigError(f"{len(members)} run is given; give two or more, for example with different seeds")
    paths = [member.path for member in members]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise ConfigError(f"{twice[0]} is given twice; give each run once")
    config, manifest = same_images(members)
    validate_shards(config.data.path)
    return config, manifest


def _finished(run: Folder, members: Sequence[Folder]) -> dict[str, Any] | None:
    """The summary of the consensus of these runs; None where there is none. ConfigError for another run's folder."""
    if (identity := run.read(IDENTITY)) is None:
        return None
    held = identity.get(MEMBERS)
    if held != [member.path for member in members]:
        what = f"the consensus of {', '.join(held)}" if held else "another run"
        raise ConfigError(f"{run.path} holds {what}; choose another folder")
    return run.read(SUMMARY)


def _combine(
    members: Sequence[Folder],
    values: list[dict[str, Any]],
    run: Folder,
    config: RunConfig,
    manifest: Manifest,
    echo: Echo,
) -> dict[str, Any]:
    """Write the run's files, the summary last; after a kill before that, the same call writes all again."""
    clusters = np.stack([clusters_of_images(member, manifest.num_images) for member in members])
    matched, count = matched_to_first(clusters), len(values[0]["centers"])
    echo(f"combining {len(members)} runs: {manifest.num_images:,} images, {count} clusters")
    centers = consensus_centers(joint_features(members, manifest.num_images), majority(matched)[0], count)
    write_part(run, consensus_tables(members, matched, centers), centers)
    keep_last_parts(run, centers)  # without those of a call that was interrupted
    metrics = _measure(run, clusters, matched, count, read_labels(config.data.path))
    combined = {MEMBERS: values, "centers": centers, "history": [], "metrics": metrics, "epoch": 0, "step": 0}
    keep_consensus(run, combined, config)
    copy_names(members[0], run)
    write_assignments(run, config.data.path, manifest.num_images, count)
    record_members(run, config, manifest, [member.path for member in members])
    return _write_results(run, members, config, manifest, combined)


def _read_member(member: Folder, first: Folder, expected: RunConfig) -> dict[str, Any]:
    """What a consensus keeps of a member; ConfigError where it is not finished, or reads images unlike the first."""
    config, _ = read_started_run(member)
    if config.data.decoding != expected.data.decoding:
        raise ConfigError(
            f"{member.path} decodes images to {config.data.decoding}, but {first.path} to {expected.data.decoding}; "
            "combine runs with the same data.image_size, data.fit and data.interpolation"
        )
    values = read_values(member.path)
    if MEMBERS in values:
        raise ConfigError(f"{member.path} is itself a consensus; give its members instead")
    return member_values(config, values)


def joint_features(members: Sequence[Folder], total: int, *, seen: bool = False) -> Iterator[Tensor]:
    """Unit features (n, R * D) of all images in order of the index, block by block: those of all members.

    They are the features by which the members clustered the images or, if `seen`, those that their models have.
    """
    names = [(seen_by_model(member) if seen else "") + "feature" for member in members]
    pairs = list(zip(members, names, strict=True))
    streams = [regroup(feature_blocks(member, [name], total), BLOCK_ROWS) for member, name in pairs]
    for tables in zip(*streams, strict=True):
        blocks = [features_of(table, name).astype(np.float32) for table, name in zip(tables, names, strict=True)]
        yield side_by_side([torch.from_numpy(block) for block in blocks])


def consensus_centers(blocks: Iterable[Tensor], voted: Array, count: int) -> Tensor:
    """The common centres (K, R * D), of unit length; 0 for a cluster without a vote.

    Parameters
    ----------
    blocks : iterable of Tensor (n, R * D)
        Features of all images, in order.
    voted : array (N,) int
        The cluster of each image in most members.
    count : int
        K.
    """
    sums, done = torch.zeros(0), 0
    for rows in blocks:
        sums = sums if len(sums) else rows.new_zeros((count, rows.shape[1]), dtype=torch.float64)
        sums.index_add_(0, torch.from_numpy(voted[done : done + len(rows)]).long(), rows.double())
        done += len(rows)
    return unit(sums).float()


def consensus_tables(members: Sequence[Folder], matched: Array, centers: Tensor) -> Iterator[pa.Table]:
    """Rows of the run's features, predictions by centres (K, R * D), and agreement, block by block."""
    total, done = matched.shape[1], 0
    features = joint_features(members, total)
    differ = any(map(seen_by_model, members))
    seen = joint_features(members, total, seen=True) if differ else itertools.repeat(None)
    for rows, as_seen in zip(features, seen, strict=False):
        table = feature_table(rows, centers, torch.arange(done, done + len(rows)), as_seen)
        same = matched[:, done : done + len(rows)] == table.column("cluster").to_numpy()
        yield table.append_column(AGREEMENT, pa.array(same.mean(axis=0, dtype=np.float32)))
        done += len(rows)


def _measure(run: Folder, clusters: Array, matched: Array, count: int, classes: Array | None) -> dict[str, float]:
    """Scores where classes are known, sizes, and how far the members (R, N) agree with the consensus and each other."""
    found = clusters_of_images(run, clusters.shape[1])
    pairs = itertools.combinations(clusters, 2)
    return {
        **({} if classes is None else clustering_scores(classes, found)),
        **size_metrics(torch.from_numpy(np.bincount(found, minlength=count))),
        AGREEMENT: float((matched == found).mean()),
        "ari_of_members": statistics.mean(contingency_agreement(count_pairs(*pair)) for pair in pairs),
    }


def _write_results(
    run: Folder, members: Sequence[Folder], config: RunConfig, manifest: Manifest, values: dict[str, Any]
) -> dict[str, Any]:
    """Write pictures, atlas, model and summary into the run's folder and to MLflow; returns the summary."""
    metrics, tracking = values["metrics"], open_run(config, run)
    with TemporaryDirectory() as place, RunWriter(tracking, spool_path(run)) as writer:
        writer.log(metrics, 0)
        write_results(run, config, manifest, values, [], Path(place), writer)
        writer.flush()
        summary = {
            "run": run.name,
            "folder": run.path,
            MEMBERS: [member.path for member in members],
            "scores": {name: metrics[name] for name in SCORES if name in metrics},
            "metrics": metrics,
            "mlflow": {"uri": writer.ref.public_uri, "run_id": writer.ref.run_id},
            "outputs": {name: run.file(file) for name, file in OUTPUTS.items() if file != CURVES} | writer.ref.output,
            "config": config.model_dump(mode="json"),
            "versions": versions(),
        }
    run.write(SUMMARY, summary)
    return summary
