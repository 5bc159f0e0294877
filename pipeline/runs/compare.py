"""Compare runs on the same images: without labels, their agreement is the best evidence available."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import csr_array

from pipeline.clustering.agreement import (
    count_pairs,
    flows,
    jaccard_of_best,
    majority,
    match_clusters,
    shared_with_match,
)
from pipeline.clustering.scores import contingency_scores
from pipeline.config.models import RunConfig
from pipeline.data.decode import aspects, decode_table
from pipeline.data.read import read_chosen, read_origins
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError
from pipeline.inference.run_features import clusters_of_images
from pipeline.report.comparison import ComparedRun, Comparison, MovedImages, comparison_page
from pipeline.report.sprites import Pictures, tile_side
from pipeline.runs.identity import read_started_run
from pipeline.runs.names import read_names
from pipeline.runs.report import ATLAS
from pipeline.storage import Folder, absolute

PAGE, MOVED, AGREEMENT, SUMMARY = "comparison.html", "moved.parquet", "agreement.parquet", "summary.json"
IMAGES = 1_800  # on the page: so many have pictures of 160 pixels (`tile_side`), about 13 MB of photographs
IMAGES_OF_A_CLUSTER = 60  # of these: more are not looked through one by one, and all are in `MOVED`
Array = np.ndarray[Any, Any]
Tables = Mapping[tuple[int, int], csr_array]
"""Of runs a < b: images in each cluster of a and of b, (K_a, K_b)."""


def compare(references: Sequence[str], out: str) -> dict[str, Any]:
    """Compare runs on the same images with the first of them.

    Parameters
    ----------
    references : sequence of str
        Folders of two finished runs or more.
    out : str
        Folder to write to, local or URI: ``comparison.html``, ``summary.json``, ``agreement.parquet`` with the share of
        runs that agree on each image, and ``moved.parquet`` with the images that are not in the same cluster in all.

    Returns
    -------
    dict
        The summary.

    Raises
    ------
    ConfigError
        When there are fewer than two runs, one is not finished, or they are on different images.
    """
    runs = [Folder(absolute(reference)) for reference in references]
    if len(runs) < 2:
        raise ConfigError(f"{len(runs)} run is given; give two or more: the others are compared with the first")
    config, manifest = same_images(runs)
    clusters = np.stack([clusters_of_images(run, manifest.num_images) for run in runs])
    tables = {(a, b): count_pairs(clusters[a], clusters[b]) for a, b in itertools.combinations(range(len(runs)), 2)}
    scores = {pair: contingency_scores(table) for pair, table in tables.items()}
    matches = _matches(tables, len(runs))
    matched = np.stack([match[labels] for match, labels in zip(matches, clusters, strict=True)])
    elsewhere = (matched != clusters[0]).sum(axis=0, dtype=np.int32)
    winner, agreement = majority(matched)
    agreement = agreement.astype(np.float32)
    target = Folder(absolute(out)).make()
    found = Comparison(
        runs=_describe_runs(runs, target, tables, matches),
        ari=_of_pairs(scores, len(runs), "ari"),
        nmi=_of_pairs(scores, len(runs), "nmi"),
        stability=np.mean([jaccard_of_best(tables[0, b]) for b in range(1, len(runs))], axis=0),
        moved=np.bincount(clusters[0][elsewhere > 0], minlength=len(matches[0])),
        images=manifest.num_images,
        agreement=float(agreement.mean(dtype=np.float64)),
        sample=_sample(clusters, elsewhere, agreement, config, manifest),
    )
    target.write_bytes(PAGE, comparison_page(found).encode())
    _write_table(target, AGREEMENT, config.data.path, {"cluster": winner, "agreement": agreement})
    moved = {"elsewhere": elsewhere} | {f"cluster_{number}": labels for number, labels in enumerate(matched)}
    _write_table(target, MOVED, config.data.path, moved, elsewhere > 0)
    summary = _summarise(found, runs, target)
    target.write(SUMMARY, summary)
    return summary


def same_images(runs: Sequence[Folder]) -> tuple[RunConfig, Manifest]:
    """Configuration and manifest of the first run; ConfigError when another run is on different images."""
    first, *others = [read_started_run(run) for run in runs]
    for run, (_, manifest) in zip(runs[1:], others, strict=True):
        if manifest.source.digest != first[1].source.digest:
            sources = f"{manifest.source.source}, but those of {runs[0].name} are {first[1].source.source}"
            raise ConfigError(f"the images of {run.path} are {sources}; give runs on the same images")
        if manifest.digest != first[1].digest:
            raise ConfigError(
                f"the images of {run.path} are those of {runs[0].name} in other shards, so that their indices differ; "
                "give runs on the same shards"
            )
    return first


def _matches(tables: Tables, runs: int) -> list[Array]:
    """For each run the clusters of the first one that its own are matched to: R arrays (K_r,) int32, -1 for none."""
    first = np.arange(tables[0, 1].shape[0])
    others = [match_clusters(tables[0, b]) for b in range(1, runs)]
    return [match.astype(np.int32) for match in (first, *others)]


def _of_pairs(scores: Mapping[tuple[int, int], Mapping[str, float]], runs: int, name: str) -> Array:
    """One of the scores of each pair of runs (R, R)."""
    values = np.eye(runs)
    for pair, found in scores.items():
        values[pair] = values[pair[::-1]] = found[name]
    return values


def _describe_runs(
    runs: Sequence[Folder], target: Folder, tables: Tables, matches: Sequence[Array]
) -> list[ComparedRun]:
    sizes = tables[0, 1].sum(axis=1)
    itself = csr_array((sizes, (matches[0], matches[0])))  # so that the first run is like any other
    found = []
    for number, (run, name) in enumerate(zip(runs, short_names([run.root for run in runs]), strict=True)):
        table, match = tables[0, number] if number else itself, matches[number]
        found.append(describe_run(name, address_of_atlas(run, target), read_names(run), table, match))
    return found


def describe_run(name: str, atlas: str, names: Mapping[int, str], table: csr_array, match: Array) -> ComparedRun:
    """A run that shares images with the first one as `table` (K, K_r) counts, and whose clusters `match` matches."""
    return ComparedRun(
        name=name,
        atlas=atlas,
        names=names,
        sizes=table.sum(axis=0),
        match=match,
        common=shared_with_match(table, match),
        flows=flows(table, match),
    )


def short_names(paths: Sequence[str]) -> list[str]:
    """The ends of the paths, as long as it takes to tell them apart."""
    parts = [path.split("/") for path in paths]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(paths)):
            return names
    return list(paths)


def address_of_atlas(run: Folder, target: Folder) -> str:
    """Address of a run's atlas from a page in `target`; empty where one of them is in a store, or there is no atlas."""
    if not (run.is_local and target.is_local) or ATLAS not in run.names(ATLAS):
        return ""
    return quote(os.path.relpath(f"{run.root}/{ATLAS}", target.root))


def _sample(clusters: Array, elsewhere: Array, agreement: Array, config: RunConfig, manifest: Manifest) -> MovedImages:
    chosen = choose_moved(clusters[0], elsewhere)
    paths, pictures = _read_images(chosen, config, manifest)
    return MovedImages(chosen, paths, clusters[:, chosen], elsewhere[chosen], agreement[chosen], pictures)


def choose_moved(clusters: Array, elsewhere: Array) -> Array:
    """Indices of images for the page: in each cluster those that the most runs put elsewhere.

    Clusters have the same number of images as far as they have so many that moved. With more than `IMAGES` clusters,
    those have one from which the most moved.

    Parameters
    ----------
    clusters : int ndarray (N,)
        Of the first run.
    elsewhere : int ndarray (N,)
        Runs that disagree with it.

    Returns
    -------
    int ndarray (n,)
        By cluster, then the most disagreement first.
    """
    moved = np.flatnonzero(elsewhere)
    order = moved[np.lexsort((moved, -elsewhere[moved], clusters[moved]))]
    counts = np.bincount(clusters[order])
    first = np.cumsum(counts) - counts
    rank = np.arange(len(order)) - first[clusters[order]]  # of an image in its cluster
    order, rank = order[rank < IMAGES_OF_A_CLUSTER], rank[rank < IMAGES_OF_A_CLUSTER]
    in_turn = np.lexsort((-counts[clusters[order]], rank))
    return order[np.sort(in_turn[:IMAGES])]


def _read_images(chosen: Array, config: RunConfig, manifest: Manifest) -> tuple[list[str], Pictures]:
    """Paths and pictures of images (n,) in their order."""
    side, interpolation = tile_side(len(chosen)), config.data.decoding["interpolation"]
    pictures = Pictures(np.empty((len(chosen), side, side, 3), np.uint8), np.empty(len(chosen), np.float32))
    paths = [""] * len(chosen)
    row_of = {index: row for row, index in enumerate(chosen.tolist())}
    for table in read_chosen(config.data.path, manifest, chosen):
        block = decode_table(table, side, "stretch", interpolation)
        rows = [row_of[index] for index in block["index"].tolist()]
        pictures.tiles[rows] = block["image"]
        pictures.aspects[rows] = aspects(table)
        for row, path in zip(rows, pc.struct_field(table.column("image"), "path").to_pylist(), strict=True):
            paths[row] = path or ""
    return paths, pictures


def _summarise(found: Comparison, runs: Sequence[Folder], target: Folder) -> dict[str, Any]:
    first = found.runs[0]
    clusters = [
        {
            "cluster": k,
            "name": first.names.get(k) or f"cluster {k}",
            "images": int(first.sizes[k]),
            "stability": float(found.stability[k]),
            "moved": int(found.moved[k]),
        }
        for k in range(len(first.sizes))
    ]
    return {
        "runs": [run.path for run in runs],
        "images": found.images,
        "moved": int(found.moved.sum()),
        "ari": found.ari.tolist(),
        "nmi": found.nmi.tolist(),
        "clusters": clusters,
        "outputs": {"page": target.file(PAGE), "agreement": target.file(AGREEMENT), "moved": target.file(MOVED)},
        "agreement": found.agreement,
    }


def _write_table(target: Folder, name: str, data: str, columns: dict[str, Array], chosen: Array | None = None) -> None:
    """Write columns (N,) with the images' index and path, of all images or of those that are `chosen` (N,)."""
    start = 0
    schema = pa.schema(
        [("index", pa.int64()), ("path", pa.string())] + [(k, pa.from_numpy_dtype(v.dtype)) for k, v in columns.items()]
    )
    with target.open_output(name) as stream, pq.ParquetWriter(stream, schema) as writer:
        for origins in read_origins(data):
            stop = start + len(origins)
            values = {"index": np.arange(start, stop), "path": origins.column("path").cast(pa.string())}
            table = pa.table(values | {key: value[start:stop] for key, value in columns.items()}, schema=schema)
            writer.write_table(table if chosen is None else table.filter(pa.array(chosen[start:stop])))
            start = stop
