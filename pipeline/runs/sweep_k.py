"""How many clusters? Features are computed once, and several criteria judge many K on them: `digpro sweep-k`."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
import torch
import yaml
from torch import Tensor

from pipeline.backbone_features.neighbours import ComparedFeatures
from pipeline.cluster import connect
from pipeline.clustering.label_free import cosine_silhouette
from pipeline.clustering.merging import center_tree, cut, group_names, merge_jumps, merged_centers
from pipeline.clustering.num_clusters import (
    Recommendation,
    cluster,
    eigengap,
    gap_statistic,
    highest,
    modularity,
    neighbour_graph,
    neighbours_for,
    recommend,
    sharpest_bend,
    stability,
)
from pipeline.config.models import RunConfig
from pipeline.data.tasks import run_each
from pipeline.errors import ConfigError
from pipeline.inference.run_features import read_features
from pipeline.keyed_random import Stream, uniform
from pipeline.lease import hold
from pipeline.progress import Echo
from pipeline.provenance import versions
from pipeline.report.sweep_figures import draw_dendrogram, draw_sweep
from pipeline.runs.embed import make_cache
from pipeline.runs.identity import IDENTITY, read_started_run
from pipeline.runs.models import load_model, run_card
from pipeline.storage import Folder, absolute, check_writable

SAMPLE = 20_000  # maximum number of images used
RESAMPLED = 5_000  # of them, for criteria that cluster many times, and for the graphs of neighbours
PAIRWISE = 2_000  # of them, for the silhouette, which compares all pairs
PAIRS, REFERENCES = 5, 3  # splits for the stability, and reference sets without clusters for the gap
DISTINCT = 1000  # images count as copies if their features are equal when rounded to 1/DISTINCT
FAIRLY_SURE = 0.6  # share of the criteria that agree
VERSION = 2  # raise it when the same features would give other results
SWEEP, CURVES, DENDROGRAM = "sweep.json", "sweep.png", "dendrogram.png"


@dataclass(frozen=True)
class Subject:
    """What is clustered.

    Attributes
    ----------
    what : str
        Path of the run or of the data set.
    features : Tensor (n, D)
        Unit features of a sample of the images, in random order.
    images : int
        Number of all images.
    centers : Tensor (K, D) or None
        Cluster centres of a run.
    sizes : ndarray (K,) or None
        Images of each of the run's clusters.
    """

    what: str
    features: Tensor
    images: int
    seed: int
    centers: Tensor | None = None
    sizes: np.ndarray[Any, Any] | None = None


def is_run(path: str) -> bool:
    """Whether a folder is that of a run; otherwise it holds shards."""
    return Folder(absolute(path)).read(IDENTITY) is not None


def of_run(path: str) -> Subject:
    """The features, centres and sizes of a finished run.

    Raises
    ------
    ConfigError, DataError
        When it is not finished, or has no checkpoint or no features.
    """
    folder = Folder(absolute(path))
    config, manifest = read_started_run(folder)
    total = manifest.num_images
    index = draw(total, config.seed)
    first = int(index.min())
    features = read_features(folder, len(index), first)[index - first]
    sizes = np.array(run_card(folder, config, manifest).clusters.sizes)
    return Subject(folder.path, features, total, config.seed, load_model(folder.path).centers, sizes)


def of_data(config: RunConfig, echo: Echo) -> Subject:
    """The features of a frozen backbone by which its neighbours are found too: a mean over the views of each image.

    Raises
    ------
    ConfigError, DataError
        When the preset trains its encoder, or for the same reasons as in `digpro embed`.
    """
    if not config.model.freeze:
        raise ConfigError(
            f"{config.data.path} holds shards, but the settings train the encoder (model.freeze=false), so there are "
            "no features yet. Give --preset photos, or the folder of a run with many clusters"
        )
    folder, cache = make_cache(config, echo)
    compared, index = ComparedFeatures(folder, cache), draw(cache.num_images, config.seed)
    first, last = int(index.min()), int(index.max())
    parts = [part for part in cache.parts if part.first_index <= last and first < part.first_index + part.rows]
    features = torch.cat([compared.of(part) for part in parts])[index - parts[0].first_index]
    return Subject(absolute(config.data.path), features, cache.num_images, config.seed)


def draw(total: int, seed: int) -> Tensor:
    """Indices (n,) of at most SAMPLE of `total` images, in an order that depends on the seed alone.

    They are a consecutive range, so that few row groups have to be read: the ingest has shuffled the rows.
    """
    count = min(total, SAMPLE)
    place = uniform(seed, 0, torch.tensor([total]), Stream.SWEEP, 1)[0, 0]  # keyed by a number that no image has
    index = int(place * (total - count + 1)) + torch.arange(count)
    return index[uniform(seed, 0, index, Stream.SWEEP, 1)[:, 0].argsort(stable=True)]


@dataclass(frozen=True)
class OverClustering:
    """More clusters than there are likely to be: their centres (M, D), sizes (M,), and the tree that merges them."""

    centers: Tensor
    sizes: Tensor
    tree: np.ndarray[Any, Any]

    def start(self, number: int) -> Tensor:
        """Centres (number, D) of the groups after cutting the tree into `number` groups."""
        return merged_centers(self.centers, self.sizes, cut(self.tree, number))


def over_cluster(subject: Subject, most: int) -> OverClustering:
    """As many clusters as the largest K."""
    found = cluster(subject.features, most, subject.seed)
    return OverClustering(found.centers, torch.bincount(found.labels, minlength=most), center_tree(found.centers))


def sweep(subject: Subject, numbers: Sequence[int], out: str, echo: Echo = print) -> dict[str, Any]:
    """Judge all `numbers` of clusters, and write curves, recommendation and merges.

    The result of each K is saved when it is done: the same call resumes after a kill.

    Parameters
    ----------
    numbers : sequence of int
        Ascending, at least three.
    out : str
        Folder to write to.

    Returns
    -------
    dict
        The summary, as it lies in sweep.json.

    Raises
    ------
    ConfigError
        When there are too few numbers, or too many clusters for the images; and when `out` cannot be written.
    """
    check_numbers(numbers, len(subject.features))
    check_distinct(numbers, subject.features[:RESAMPLED])
    check_writable(out, "--out")
    connect()
    with hold(folder := Folder(absolute(out)).make(), "choose another folder (--out)"):
        started = time.monotonic()
        echo(f"{subject.what}: {len(subject.features):,} of {subject.images:,} images")
        over = over_cluster(subject, numbers[-1])
        judged = judge_all(subject, numbers, over, folder, echo)
        curves = {name: [judged[number][name] for number in numbers] for name in judged[numbers[0]]}
        jumps = [*merge_jumps(over.tree).tolist(), 0.0]  # no merge comes before the largest K
        curves["dendrogram"] = [jumps[number - 1] for number in numbers]
        return conclude(subject, over, list(numbers), curves, folder, time.monotonic() - started)


def check_numbers(numbers: Sequence[int], rows: int) -> None:
    """ConfigError when these K cannot be compared on so many rows."""
    if len(numbers) < 3 or numbers[0] < 2:
        first, last = (numbers[0], numbers[-1]) if numbers else ("none", "none")
        raise ConfigError(
            f"--from and --to give {len(numbers)} numbers of clusters ({first} to {last}); give a --from of at least 2 "
            "and a --to that is larger by at least 2"
        )
    if min(rows, RESAMPLED) < 4 * numbers[-1]:
        raise ConfigError(
            f"--to {numbers[-1]} is too large for {rows} images, because half of them are clustered at a time; "
            f"give at most {min(rows, RESAMPLED) // 4}"
        )


def check_distinct(numbers: Sequence[int], features: Tensor) -> None:
    """ConfigError when so many clusters cannot differ, because most images are copies of others."""
    distinct = len(torch.unique((features * DISTINCT).round(), dim=0))
    if distinct > numbers[-1]:
        return
    most = distinct - 1
    remedy = f"give --to {most} or less" if most >= numbers[0] + 2 else "give more images that differ from each other"
    raise ConfigError(
        f"--to {numbers[-1]} is too large: of {len(features)} images, only {distinct} have different features; {remedy}"
    )


def judge_all(
    subject: Subject, numbers: Sequence[int], over: OverClustering, folder: Folder, echo: Echo
) -> dict[int, dict[str, float]]:
    """All criteria for each K: one task per K, largest first, so that no long task runs alone at the end."""
    middle = round(math.sqrt(numbers[0] * numbers[-1]))  # the modularity of all K is measured in the graph of this one
    work = folder.subfolder(f"parts-{_digest(subject, numbers[-1], middle)}").make()
    judged = {number: values for number in numbers if (values := work.read(_part(number))) is not None}
    missing = [number for number in reversed(numbers) if number not in judged]
    if judged:
        echo(f"{len(judged)} of {len(numbers)} numbers of clusters are already done")
    shared: Any = ray.put(subject.features) if len(missing) > 1 and ray.is_initialized() else subject.features
    started = time.monotonic()
    calls = [(shared, over.start(number), middle, subject.seed) for number in missing]
    for number, values in run_each(judge, calls):
        work.write(_part(number), values)
        judged[number] = values
        echo(_progress(len(judged), len(numbers), len(missing), time.monotonic() - started))
    return judged


def judge(features: Tensor, start: Tensor, middle: int, seed: int) -> tuple[int, dict[str, float]]:
    """The criteria for one K, except the dendrogram, which covers all K.

    `start` (K, D) are the centres from which k-means starts; `middle` is the K in whose graph modularity is measured.
    """
    number, few, resampled = len(start), slice(PAIRWISE), features[:RESAMPLED]
    labels = cluster(features, number, seed, start).labels
    own, common = (neighbour_graph(resampled, neighbours_for(len(resampled), k)) for k in (number, middle))
    return number, {
        "silhouette": cosine_silhouette(features[few], labels[few]),
        "stability": stability(resampled, number, pairs=PAIRS, seed=seed),
        "gap": gap_statistic(resampled, start, references=REFERENCES, seed=seed),
        "modularity": modularity(common, labels[:RESAMPLED].numpy()),
        "eigengap": eigengap(own, number),
    }


def pick_each(numbers: Sequence[int], curves: dict[str, list[float]]) -> dict[str, int]:
    """The K of each criterion: its highest point, or, for the gap, which keeps rising, the sharpest bend."""
    return {name: (sharpest_bend if name == "gap" else highest)(numbers, curve) for name, curve in curves.items()}


def conclude(
    subject: Subject,
    over: OverClustering,
    numbers: list[int],
    curves: dict[str, list[float]],
    folder: Folder,
    seconds: float,
) -> dict[str, Any]:
    """Draw and write everything; the summary last."""
    picks = pick_each(numbers, curves)
    found = recommend(picks)
    sentence = describe(found, picks, numbers)
    with TemporaryDirectory() as local:
        draw_sweep(Path(local, CURVES), numbers, curves, picks, found.num_clusters, sentence)
        folder.write_bytes(CURVES, Path(local, CURVES).read_bytes())
        outputs = {"summary": SWEEP, "curves": CURVES, **write_merges(subject, over, picks, found, folder)}
    summary = {
        "of": subject.what,
        "images": subject.images,
        "sampled": len(subject.features),
        "seed": subject.seed,
        "settings": _settings(),
        "numbers": numbers,
        "curves": curves,
        "picks": picks,
        "recommendation": {**found._asdict(), "sentence": sentence},
        "seconds": round(seconds, 1),
        "outputs": {name: folder.file(file) for name, file in outputs.items()},
        "versions": versions(),
    }
    folder.write(SWEEP, summary)
    return summary


def describe(found: Recommendation, picks: dict[str, int], numbers: Sequence[int]) -> str:
    """The recommendation and how sure it is, in one sentence."""
    words = "sure" if found.confidence == 1 else "fairly sure" if found.confidence >= FAIRLY_SURE else "not sure"
    agree = round(found.confidence * len(picks))
    text = f"{found.num_clusters} clusters, {words}: {agree} of {len(picks)} criteria pick it or a number next to it"
    at_edge = found.num_clusters in (numbers[0], numbers[-1])
    return text + (f"; it is at the edge of {numbers[0]} to {numbers[-1]}: widen the range" if at_edge else "")


def write_merges(
    subject: Subject, over: OverClustering, picks: dict[str, int], found: Recommendation, folder: Folder
) -> dict[str, str]:
    """Draw how clusters merge; for a run, also write the merges to each number that a criterion picks.

    Without a run the clusters are those of k-means with the largest K of the sweep.
    """
    if subject.centers is None or subject.sizes is None:
        tree, sizes = over.tree, over.sizes.numpy()
    else:
        tree, sizes = center_tree(subject.centers), subject.sizes
    clusters = len(sizes)
    with TemporaryDirectory() as local:
        draw_dendrogram(Path(local, DENDROGRAM), tree, sizes, min(found.num_clusters, clusters))
        folder.write_bytes(DENDROGRAM, Path(local, DENDROGRAM).read_bytes())
    outputs = {"dendrogram": DENDROGRAM}
    for file in folder.names("merge-"):  # left by a sweep over other numbers
        folder.delete(file)
    wanted = {found.num_clusters, *picks.values()} if subject.centers is not None else set()
    for number in sorted(number for number in wanted if number < clusters):
        file = f"merge-{number}.yaml"
        folder.write_bytes(file, yaml.safe_dump(group_names(cut(tree, number)), sort_keys=True).encode())
        outputs[f"merge to {number}"] = file
    return outputs


def _part(number: int) -> str:
    return f"k-{number:04d}.json"


def _settings() -> dict[str, int]:
    """The constants that determine the curves besides the features and the seed."""
    return {
        "version": VERSION,
        "sample": SAMPLE,
        "resampled": RESAMPLED,
        "pairwise": PAIRWISE,
        "pairs": PAIRS,
        "references": REFERENCES,
    }


def _digest(subject: Subject, *numbers: int) -> str:
    """Eight characters that change with the features, the seed, the settings of the criteria, and these numbers."""
    digest = hashlib.sha256(subject.features.numpy().tobytes())
    digest.update(repr((subject.seed, _settings(), numbers)).encode())
    return digest.hexdigest()[:8]


def _progress(done: int, total: int, begun_with: int, seconds: float) -> str:
    left = total - done
    minutes, rest = divmod(round(seconds / max(begun_with - left, 1) * left), 60)
    return f"sweep-k: {done}/{total} numbers of clusters  {minutes}:{rest:02d} left"
