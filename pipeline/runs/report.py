"""The atlas of a run, made from the run's files: `atlas.html`, and `embedding.parquet` for Embedding Atlas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial, reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.backbone_features.neighbours import EXACT_IMAGES
from pipeline.config.loading import load_config, preset_names
from pipeline.config.models import RunConfig
from pipeline.data.decode import aspects, decode_table
from pipeline.data.read import read_chosen
from pipeline.data.shards import Manifest, has_manifest
from pipeline.errors import ConfigError, DataError
from pipeline.inference.assign import rewrite_rows
from pipeline.inference.run_features import has_features, read_features
from pipeline.report.atlas import atlas_page, rename_clusters
from pipeline.report.choice import Assignments, ClusterTotals, count_images
from pipeline.report.compose import Clustering, compose
from pipeline.report.mapped_images import cluster_names, embedding_table, map_images
from pipeline.report.sprites import Pictures, tile_side
from pipeline.runs.identity import SUMMARY, read_beginning, read_members, read_started_run
from pipeline.runs.models import read_values
from pipeline.runs.names import read_names
from pipeline.storage import Folder, absolute, remedy_for

ASSIGNMENTS = "assignments.parquet"
ATLAS, EMBEDDING = "atlas.html", "embedding.parquet"
SHOWN_IMAGES = 100_000  # that a page chooses from: the first rows are a random sample, because the ingest shuffles
REMEDY = f"delete {SUMMARY} beside it and run the same `digpro train` again, which writes both files"
COLUMNS = ("path", "cluster", "runner_up", "similarity", "margin", "outlier")
Array = np.ndarray[Any, Any]


def report(run: str) -> dict[str, str]:
    """Write the atlas of a run into its folder.

    Parameters
    ----------
    run : str
        Folder of a run that has ended.

    Returns
    -------
    dict
        What was written -> where it lies.

    Raises
    ------
    ConfigError
        When `run` is not a run's folder, or has no checkpoint or no usable assignments.
    DataError
        When a file of the run or a shard cannot be read.
    """
    folder = Folder(absolute(run))
    config, manifest = read_started_run(folder)
    values = read_values(folder.path)
    values.pop("labels", None)  # of all images
    alarms = (folder.read(SUMMARY) or {}).get("alarms", [])
    with TemporaryDirectory() as local:
        files = write_report(Path(local), folder, config, manifest, values, alarms)
        for file in files:
            folder.put(file)
    return {file.stem: folder.file(file.name) for file in files}


def put_names(run: str) -> str | None:
    """Put the names of a run's clusters into its tables, and into its atlas without decoding a picture again.

    Returns the path of the atlas, or None if there is none. ConfigError when the file is not an atlas.
    """
    folder = Folder(absolute(run))
    names = read_names(folder)
    for table in {ASSIGNMENTS, EMBEDDING} & set(folder.names()):
        rewrite_rows(folder, table, partial(with_names, names=names))
    if ATLAS not in folder.names(ATLAS):
        return None
    place = folder.file(ATLAS)
    page = folder.read_bytes(ATLAS).decode()
    try:
        page = rename_clusters(page, names)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"the names are saved, but {place} is damaged ({error}); run `digpro report {run}`") from None
    folder.write_bytes(ATLAS, page.encode())
    return place


def with_names(rows: pa.Table, names: Mapping[int, str]) -> pa.Table:
    """The rows of a run's table with the current names of the clusters."""
    others = rows.drop_columns("name") if "name" in rows.column_names else rows
    return others.append_column("name", cluster_names(rows.column("cluster").to_numpy(), names))


def write_report(
    local: Path,
    folder: Folder,
    config: RunConfig,
    manifest: Manifest,
    values: Mapping[str, Any],
    alarms: Sequence[Mapping[str, Any]],
) -> list[Path]:
    """Write a run's atlas, and `embedding.parquet` if it has features, into a local folder; returns the files.

    Counts and means cover all images. Single images are chosen from the first `SHOWN_IMAGES`.

    Parameters
    ----------
    folder : Folder
        The run's, with its assignments and features.
    values : mapping
        Of its newest checkpoint.
    alarms : sequence of dict
        Each with "epoch", "kind" and "text".
    """
    images = read_assignments(folder, SHOWN_IMAGES)
    features = read_features(folder, min(len(images), EXACT_IMAGES)) if has_features(folder) else None
    clustering = Clustering(
        title=folder.name,
        images=images,
        totals=read_totals(folder, len(values["centers"])),
        centers=values["centers"],
        mapped=None if features is None else map_images(features),
        names=read_names(folder),
        class_names=manifest.class_captions,
        history=values["history"],
        alarms=alarms,
        warmup=config.optim.warmup_epochs,
        origin=describe_origin(folder, config, manifest, len(values["centers"])),
        metrics=values.get("metrics", {}),
    )
    atlas = compose(clustering, lambda chosen: read_pictures(config, manifest, chosen))
    files = [local / ATLAS]
    files[0].write_text(atlas_page(atlas), encoding="utf-8")
    if clustering.mapped is not None:
        files.append(local / EMBEDDING)
        pq.write_table(
            embedding_table(images, clustering.mapped, clustering.names, atlas.rows, atlas.pictures), files[1]
        )
    return files


def describe_origin(folder: Folder, config: RunConfig, manifest: Manifest, num_clusters: int) -> list[tuple[str, str]]:
    """What a run was trained on or combines, its settings, and with which code and when it began."""
    began = read_beginning(folder)
    found = [
        ("source", manifest.source.source),
        ("combines", "\n".join(read_members(folder))),
        ("clusters", str(num_clusters)),
        ("backbone", config.model.encoder),
        ("seed", str(config.seed)),
        changed_settings(config, began.get("preset", "")),
        ("run began", began.get("time", "")),
        ("version", began.get("version", "")),
        ("commit", began.get("commit", "")),
        ("page written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
    ]
    return [(what, value) for what, value in found if value]


def changed_settings(config: RunConfig, preset: str) -> tuple[str, str]:
    """A title, and the settings that differ from those of a preset, or from the defaults where there is no such preset.

    Settings of images that the preset leaves open are left out: a run fills them in as its network expects them.
    """
    if preset not in preset_names():
        title, changed = "defaults", _settings(config, exclude_defaults=True)
    else:
        title, base = f"those of the preset {preset}", _settings(load_config(preset))
        changed = {
            key: value
            for key, value in _settings(config).items()
            if value != base[key] and not (base[key] is None and key.startswith(("data.", "views.")))
        }
    return f"settings other than {title}", "\n".join(f"{key}={value}" for key, value in changed.items()) or "none"


def _settings(config: RunConfig, *, exclude_defaults: bool = False) -> dict[str, Any]:
    """All settings but those of places by dotted key; the URI of tracking can hold a password."""
    values = config.model_dump(mode="json", exclude={"name", "storage", "tracking"}, exclude_defaults=exclude_defaults)
    return {
        f"{section}.{key}" if key else section: value
        for section, below in values.items()
        for key, value in (below.items() if isinstance(below, dict) else [("", below)])
    }


def read_assignments(folder: Folder, count: int) -> Assignments:
    """The assignments of the first `count` images of a run, or of all if there are fewer.

    Raises
    ------
    ConfigError
        When there are none yet, or an earlier version wrote them with fewer columns.
    DataError
        When the file cannot be read.
    """
    tables, missing = [], count
    for table in _blocks(folder, COLUMNS):
        tables.append(table.slice(0, missing))
        missing -= len(tables[-1])
        if missing == 0:
            break
    return _as_assignments(pa.concat_tables(tables))


def read_totals(folder: Folder, num_clusters: int) -> ClusterTotals:
    """Counts and sums over all images, read block by block; errors are those of `read_assignments`."""
    blocks = (count_images(_as_assignments(table), num_clusters) for table in _blocks(folder, COLUMNS[1:]))
    return reduce(ClusterTotals.plus, blocks)


def _blocks(folder: Folder, columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of the assignments, and labels where they have them."""
    place = f"{folder.root}/{ASSIGNMENTS}"
    if not folder.files.get_file_info(place).is_file:
        raise ConfigError(
            f"{folder.path} holds no {ASSIGNMENTS}: the run has not finished; run its `digpro train` again"
        )
    try:
        with folder.files.open_input_file(place) as handle:
            file = pq.ParquetFile(handle)
            there = file.schema_arrow.names
            if missing := [name for name in COLUMNS if name not in there]:
                raise ConfigError(
                    f"{folder.file(ASSIGNMENTS)} has no column {missing[0]!r}: an earlier version wrote it; {REMEDY}"
                )
            wanted = [*columns, *(["label"] if "label" in there else [])]
            for group in range(file.num_row_groups):  # `iter_batches` holds all that it has read
                yield file.read_row_group(group, columns=wanted)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{folder.file(ASSIGNMENTS)} cannot be read ({error}); {remedy_for(error, REMEDY)}") from error


def _as_assignments(table: pa.Table) -> Assignments:
    """The columns of a table; paths are empty where it has none."""
    columns = {name: table.column(name).to_numpy() for name in COLUMNS[1:]}
    label = table.column("label").to_numpy() if "label" in table.column_names else None
    paths = table.column("path").to_pylist() if "path" in table.column_names else []
    return Assignments(path=[path or "" for path in paths], label=label, **columns)


def read_pictures(config: RunConfig, manifest: Manifest, chosen: Array) -> Pictures | None:
    """Small pictures of the sorted indices, for viewing; None when the shards are gone."""
    if not has_manifest(config.data.path):
        return None
    side, interpolation = tile_side(len(chosen)), config.data.decoding["interpolation"]
    pictures = Pictures(np.empty((len(chosen), side, side, 3), np.uint8), np.empty(len(chosen), np.float32))
    done = 0
    for table in read_chosen(config.data.path, manifest, chosen):
        part = slice(done, done + len(table))
        pictures.tiles[part] = decode_table(table, side, "stretch", interpolation)["image"]
        pictures.aspects[part] = aspects(table)
        done += len(table)
    return pictures
