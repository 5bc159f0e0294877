"""Apply a trained model to any images: the cluster of each, and how the images differ from the training images."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from typing import Any

import numpy as np
from scipy.spatial.distance import jensenshannon

from pipeline.backbones.onnx_program import is_worth_it
from pipeline.checks.capacity import actor_pool
from pipeline.checks.nodes import node_resources
from pipeline.cluster import cluster_facts, connect
from pipeline.config.models import ResourcesConfig
from pipeline.data.pixel_options import PixelOptions
from pipeline.data.shards import Quarantined, has_manifest, validate_shards
from pipeline.data.sources import open_source
from pipeline.data.sources.base import refuse_overlap
from pipeline.data.sources.listing import is_of_system
from pipeline.errors import ConfigError, DataError
from pipeline.inference.assign import PARTS, AssignJob, AssignReport, assign, rename_clusters
from pipeline.inference.card import CARD, ModelCard
from pipeline.inference.image_parts import SOURCE_PART_IMAGES, ImageParts, shard_parts, source_parts
from pipeline.inference.predict import TrainingClusters
from pipeline.lease import LEASE, hold
from pipeline.progress import Echo
from pipeline.runs.identity import SUMMARY
from pipeline.runs.models import TrainedModel, open_model
from pipeline.serving.export import ONNX
from pipeline.storage import Folder, absolute, check_writable, filesystem

WORK, BAD = "work.json", "bad.jsonl"
_KIND = re.compile(r"\w+:(?!//)")  # of a source, before its path


def assign_images(
    run: str,
    source: str,
    out: str,
    *,
    features: bool = False,
    classes: bool = False,
    gpus: bool | None = None,
    echo: Echo = print,
) -> dict[str, Any]:
    """Assign every image of a source to a cluster; the same call resumes where an earlier one stopped.

    Parameters
    ----------
    run : str
        The model: see `open_model`.
    source : str
        Folder of shards, or any source that `digpro ingest` takes.
    out : str
        Folder to write to, local or URI.
    features, classes : bool
        Add the columns `feature` (float16) and `label`.
    gpus : bool, optional
        Whether actors get GPUs, which the cluster may still have to add; when absent, if the cluster has any.
    echo : callable
        Takes the lines of progress.

    Returns
    -------
    dict
        The summary, as it lies in ``summary.json`` of `out`.

    Raises
    ------
    ConfigError, DataError
        When there is no such model or source, or `out` belongs to another command.
    RunFailed
        When Ray fails; the same call resumes.
    """
    model = open_model(run)
    images = open_images(source, model.card.pixels, out)
    target = Folder(absolute(out))
    check_writable(target.path, "FOLDER")
    with hold(target, "choose another folder"):
        _claim(target, model, images, features=features, classes=classes, echo=echo)
        if (summary := target.read(SUMMARY)) is not None:
            echo(f"{target.path} already holds the assignments of these images")
            return summary
        connect()
        started = time.monotonic()
        resources = pool_resources(gpus)
        enough = is_worth_it(images.total, model.card.decoding["size"])
        by_onnx = enough and not actor_pool(resources, node_resources(), 1).gpus
        load = model.cpu_loader(target, echo) if by_onnx else model.loader(target)
        job = AssignJob(load, model.card, model.batch_size, target.path, features, classes, resources)
        total = _assign(images, job, target, echo)
        summary = summarise(model.card, images, total, target) | {"seconds": round(time.monotonic() - started, 3)}
        target.write(SUMMARY, summary)
        target.delete(ONNX)  # only for the nodes without GPUs
    return summary


def pool_resources(gpus: bool | None) -> ResourcesConfig:
    """The resources to request: the GPUs that the cluster has, or, where `gpus` is given, those that it can add."""
    return ResourcesConfig() if gpus is None else ResourcesConfig(gpus=gpus, autoscale=True)


def open_images(source: str, pixels: PixelOptions, out: str | None = None) -> ImageParts:
    """The images of a folder of shards, or of another source, which is read with the options of the training.

    A source that contains `out` is refused.
    """
    if not _KIND.match(source) and has_manifest(source):
        return shard_parts(absolute(source), validate_shards(source))
    opened = open_source(source, SOURCE_PART_IMAGES)
    if out is not None:
        refuse_overlap(opened, *filesystem(out), out)
    return source_parts(opened, pixels)


def _claim(
    target: Folder, model: TrainedModel, images: ImageParts, *, features: bool, classes: bool, echo: Echo
) -> None:
    """Record in the folder what it is for; ConfigError when it is for something else.

    The names of the run and of clusters do not count: if cluster names have changed, the existing files get the new
    ones.
    """
    unnamed = model.card.model_copy(update={"run": "", "names": {}})
    card = hashlib.sha256(unnamed.model_dump_json().encode()).hexdigest()
    names = {str(cluster): name for cluster, name in model.card.names.items()}
    work = {
        "model": f"weights {model.weights[:8]}, {CARD} {card[:8]}",
        "images": f"digest {images.stamp[:16]}",
        "columns": " ".join(name for name, wanted in (("feature", features), ("label", classes)) if wanted),
    }
    before = target.read(WORK)
    named = {} if before is None else before.pop("names", {})
    if before is None and (others := [name for name in target.names() if name != LEASE and not is_of_system(name)]):
        raise ConfigError(f"{target.path} holds other files ({others[0]!r}, ...); choose a new folder")
    if before is not None and before != work:
        others = [key for key in work if before.get(key) != work[key]]
        changed = [f"{key} {before.get(key)!r}, now {work[key]!r}" for key in others]
        raise ConfigError(
            f"{target.path} holds other assignments: {'; '.join(changed)}; choose another folder, or delete this one"
        )
    if before is not None and named != names:
        echo(f"{target.path} has earlier names of clusters; they are replaced")
        target.delete(SUMMARY)  # it has names and, for an evaluation, scores that depend on them
        rename_clusters(target, model.card)
    target.write(WORK, work | {"names": names})


def _assign(images: ImageParts, job: AssignJob, target: Folder, echo: Echo) -> AssignReport:
    """Assign, and write the list of bad images as the reports arrive; returns the sum of the reports."""
    total = AssignReport(left_out=sum(entry.files for entry in images.left_out))
    total.refuse(list(images.quarantined))
    with target.open_output(BAD) as stream:
        stream.write(_lines(total.bad))
        for report in assign(images, job, echo):
            stream.write(_lines(report.bad))
            total = total.plus(report)
    if total.images == 0:
        raise DataError(f"{images.name} has no readable image; see {target.file(BAD)}")
    return total


def _lines(entries: list[Quarantined]) -> bytes:
    return "".join(f"{entry.model_dump_json()}\n" for entry in entries).encode()


def group_key(cluster: dict[str, Any]) -> str | int:
    """The key under which a summary's cluster is counted: its name, or its number if it has none."""
    return cluster["cluster"] if cluster["name"] is None else str(cluster["name"])


def group_sizes(summary: dict[str, Any]) -> Counter[str | int]:
    """Images of each group of a summary: clusters with the same name are one group."""
    sizes = Counter[str | int]()
    for cluster in summary["clusters"]:
        sizes[group_key(cluster)] += cluster["images"]
    return sizes


def summarise(card: ModelCard, images: ImageParts, total: AssignReport, target: Folder) -> dict[str, Any]:
    """Sizes, drift, and paths of the outputs."""
    sizes = [{"cluster": number, "name": card.name(number), "images": size} for number, size in enumerate(total.sizes)]
    outputs = {"summary": SUMMARY, "assignments": PARTS, "bad": BAD}
    return {
        "run": card.run,
        "source": images.name,
        "pixels": card.pixels.model_dump(mode="json"),
        "images": total.images,
        "bad": total.bad_count,
        "left_out": total.left_out,
        "clusters": sizes,
        "drift": drift(card.clusters, total),
        "outputs": {name: target.file(file) for name, file in outputs.items()},
        **cluster_facts(),
    }


def drift(training: TrainingClusters, total: AssignReport) -> dict[str, float]:
    """How the images differ from those of the training; all values are 0 for the same images.

    `sizes` is the Jensen-Shannon divergence (Lin 1991), in bits and so in [0, 1], between the clusters' shares here and
    in the training. `similarity` is the mean similarity to the own centre here minus that in the training. `outliers`
    is the share of images whose outlier score is above 3.5, minus that share in the training.
    """
    shares = [np.asarray(sizes) / sum(sizes) for sizes in (training.sizes, total.sizes)]
    return {
        "sizes": float(jensenshannon(*shares, base=2) ** 2),
        "similarity": total.similarity / total.images - training.similarity,
        "outliers": total.outliers / total.images - training.outliers,
    }
