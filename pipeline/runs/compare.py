"""Compare runs on the same images: without labels, their agreement is the best evidence available."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_array

from pipeline.clustering.agreement import count_pairs, jaccard_of_best, majority, matched_to_first
from pipeline.clustering.scores import contingency_scores
from pipeline.config.models import RunConfig
from pipeline.data.decode import decode_table
from pipeline.data.read import read_chosen, read_origins
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError
from pipeline.inference.run_features import clusters_of_images
from pipeline.report.comparison import Comparison, comparison_page
from pipeline.runs.identity import read_started_run
from pipeline.runs.names import read_names
from pipeline.storage import Folder, absolute

PAGE, MOVED, AGREEMENT, SUMMARY = "comparison.html", "moved.parquet", "agreement.parquet", "summary.json"
SHOWN = 10  # images of each cluster
TILE = 96  # pixels
Array = np.ndarray[Any, Any]


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
    matched = matched_to_first(clusters)
    elsewhere = (matched != clusters[0]).sum(axis=0, dtype=np.int32)
    winner, agreement = majority(matched)
    found = _compose(runs, int(clusters[0].max()) + 1, clusters[0], tables, elsewhere, config, manifest)
    target = Folder(absolute(out)).make()
    summary = _summarise(found, runs, target) | {"agreement": float(agreement.mean())}
    target.write_bytes(PAGE, comparison_page(found).encode())
    _write_table(target, AGREEMENT, config.data.path, {"cluster": winner, "agreement": agreement.astype(np.float32)})
    moved = {"elsewhere": elsewhere} | {f"cluster_{number}": labels for number, labels in enumerate(matched)}
    _write_table(target, MOVED, config.data.path, moved, elsewhere > 0)
    target.write(SUMMARY, summary)
    return summary


def same_images(runs: Sequence[Folder]) -> tuple[RunConfig, Manifest]:
    """Configuration and manifest of the first run; ConfigError when another run is on different images."""
    first, *others = [read_started_run(run) for run in runs]
    for run, (_, manifest) in zip(runs[1:], others, strict=True):
        if manifest.source.digest != first[1].source.digest:
            sources = f"{manifest.source.source}, but those of {runs[0].name} are {first[1].source.source}"
            raise ConfigError(f"the images of {run.path} are {sources}; give runs on the same images")
    return first


def _compose(
    runs: Sequence[Folder],
    count: int,
    clusters: Array,
    tables: dict[tuple[int, int], csr_array],
    elsewhere: Array,
    config: RunConfig,
    manifest: Manifest,
) -> Comparison:
    ari, nmi = np.eye(len(runs)), np.eye(len(runs))
    for pair, table in tables.items():
        scores = contingency_scores(table)
        for values, name in ((ari, "ari"), (nmi, "nmi")):
            values[pair] = values[pair[::-1]] = scores[name]
    names = read_names(runs[0])
    return Comparison(
        names=[run.name for run in runs],
        ari=ari,
        nmi=nmi,
        titles=[names.get(number) or f"cluster {number}" for number in range(count)],
        sizes=np.bincount(clusters, minlength=count),
        stability=np.mean([jaccard_of_best(tables[0, b]) for b in range(1, len(runs))], axis=0),
        moved=np.bincount(clusters[elsewhere > 0], minlength=count),
        images=len(clusters),
        pictures=_pictures(clusters, elsewhere, config, manifest),
    )


def _pictures(clusters: Array, elsewhere: Array, config: RunConfig, manifest: Manifest) -> dict[int, Array]:
    """Tiles of the images of each cluster that the most runs put into another one."""
    moved = np.flatnonzero(elsewhere)
    order = moved[np.lexsort((moved, -elsewhere[moved], clusters[moved]))]
    chosen = {int(k): order[clusters[order] == k][:SHOWN] for k in np.unique(clusters[order])}
    if not chosen:
        return {}
    decoding = config.data.decoding | {"size": TILE, "fit": "show"}
    tiles: dict[int, Array] = {}
    for table in read_chosen(config.data.path, manifest, np.concatenate(list(chosen.values()))):
        block = decode_table(table, **decoding)
        tiles |= dict(zip(block["index"].tolist(), block["image"], strict=True))
    return {cluster: np.stack([tiles[int(i)] for i in images]) for cluster, images in chosen.items()}


def _summarise(found: Comparison, runs: Sequence[Folder], target: Folder) -> dict[str, Any]:
    clusters = [
        {"cluster": k, "name": title, "images": int(size), "stability": float(stability), "moved": int(moved)}
        for k, (title, size, stability, moved) in enumerate(
            zip(found.titles, found.sizes, found.stability, found.moved, strict=True)
        )
    ]
    return {
        "runs": [run.path for run in runs],
        "images": found.images,
        "moved": int(found.moved.sum()),
        "ari": found.ari.tolist(),
        "nmi": found.nmi.tolist(),
        "clusters": clusters,
        "outputs": {"page": target.file(PAGE), "agreement": target.file(AGREEMENT), "moved": target.file(MOVED)},
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
