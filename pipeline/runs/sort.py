"""Sort images into a folder per cluster: a run's training images, or those that `digpro assign` assigned."""

from __future__ import annotations

import contextlib
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
from PIL import Image, UnidentifiedImageError

from pipeline.data.formats import HEAD_BYTES
from pipeline.data.pixel_options import PixelOptions
from pipeline.data.shards import validate_shards
from pipeline.data.sources.listing import is_of_system
from pipeline.errors import ConfigError, DataError
from pipeline.inference.image_parts import EncodedImage, ImageParts, shard_parts
from pipeline.inference.predict import OUTLIER
from pipeline.progress import Echo, Progress
from pipeline.runs.assign import open_images
from pipeline.runs.file_names import UniqueNames, cluster_folders, image_file_name
from pipeline.runs.identity import IDENTITY, SUMMARY, read_started_run
from pipeline.runs.names import count_clusters, read_names
from pipeline.runs.report import ASSIGNMENTS
from pipeline.runs.tables import check_format, write_tables
from pipeline.storage import Folder, absolute

WORK, TABLE = "sort.json", "images.csv"
OUTLIERS = "outliers"  # folder inside that of a cluster
MOST_MARGIN = 2  # between two cosines
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("path", pa.string()),
        ("cluster", pa.int64()),
        ("name", pa.string()),
        ("similarity", pa.float32()),
        ("margin", pa.float32()),
        ("outlier", pa.float32()),
        ("width", pa.int64()),
        ("height", pa.int64()),
    ]
)
Row = dict[str, Any]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Choice:
    """Which images are sorted.

    Attributes
    ----------
    top : int or None
        Maximum number of images per folder: those that are most similar to the centre.
    min_margin : float
        Images with a smaller margin are left out.
    outliers : "among" or "apart"
        "apart" puts them into a folder inside that of their cluster.
    """

    top: int | None = None
    min_margin: float = 0.0
    outliers: str = "among"


@dataclass(frozen=True)
class AssignedImages:
    """Images and their rows of the assignments, in the same order; images that could not be read have no row.

    `names` has the clusters' names by number, `clusters` is the number of clusters, and `root` is the local folder of
    the original files, if the source is one.
    """

    parts: ImageParts
    table: pads.Dataset
    names: Mapping[int, str]
    clusters: int
    root: str | None


def sort_images(
    reference: str,
    out: str,
    choice: Choice,
    *,
    source: str | None = None,
    links: bool = False,
    table: str = "csv",
    echo: Echo = print,
) -> dict[str, Any]:
    """Put images into a folder for each cluster, or for each name; after a kill, the same call starts over.

    Parameters
    ----------
    reference : str
        Folder of a finished run, or of what `digpro assign` wrote.
    out : str
        Folder to write to, local or URI: new, or left by the same call. ``images.csv`` in it lists the files.
    choice : Choice
    source : str, optional
        Where the images are now, if they have moved.
    links : bool
        Make symbolic links to the original files instead of copies.
    table : str
        One of `pipeline.runs.tables.FORMATS`; its files are written beside ``images.csv``.

    Returns
    -------
    dict
        The summary, as it lies in ``summary.json`` of `out`.

    Raises
    ------
    ConfigError
        When an option is wrong, there is nothing to sort, `out` holds something else, or links cannot be made.
    DataError
        When images are gone or have changed.
    """
    check_format(table)
    if choice.outliers not in ("among", "apart"):
        raise ConfigError(f"--outliers {choice.outliers} is not known; give among or apart")
    if not 0 <= choice.min_margin <= MOST_MARGIN:  # true also for NaN
        raise ConfigError(
            f"--min-margin {choice.min_margin:g} is not between 0 and {MOST_MARGIN}; give a difference between two "
            "cosines, such as 0.1"
        )
    target = Folder(absolute(out))
    images = open_assigned(Folder(absolute(reference)), target.path, source)
    if links and (images.root is None or not target.is_local):
        raise ConfigError(
            f"--links needs a local folder of image files, and {images.parts.name} is not one; leave --links out"
        )
    if (summary := _claim(target, images, {**asdict(choice), "links": links, "table": table})) is not None:
        echo(f"{target.path} already holds these images")
        return summary
    folders = cluster_folders(images.clusters, images.names)
    chosen = choose(images.table, folders, choice)
    counts = _write(images, target, folders, chosen, choice, links, echo)
    tables = write_tables(table, target.read_bytes(TABLE), target)
    summary = {
        "source": images.parts.name,
        "images": int(chosen.sum()),
        "folders": counts,
        "outputs": {"folder": target.path, "tables": [target.file(TABLE), *tables]},
    }
    target.write(SUMMARY, summary)
    return summary


def open_assigned(folder: Folder, out: str, source: str | None = None) -> AssignedImages:
    """The images of a run's training or of an assignment, from `source` if given; a source around `out` is refused.

    Raises
    ------
    ConfigError
        When the folder is neither, or is not finished.
    """
    summary = folder.read(SUMMARY)
    if summary is None or ASSIGNMENTS not in folder.names(ASSIGNMENTS):
        raise ConfigError(
            f"{folder.path} holds neither a finished run nor an assignment; give a folder with {ASSIGNMENTS}"
        )
    table = pads.dataset(f"{folder.root}/{ASSIGNMENTS}", filesystem=folder.files, format="parquet")
    if folder.names(IDENTITY):
        config, manifest = read_started_run(folder)
        place = source or config.data.path
        parts = shard_parts(absolute(place), validate_shards(place))
        return AssignedImages(parts, table, read_names(folder), count_clusters(folder), _root(manifest.source.source))
    place, clusters = source or summary["source"], summary["clusters"]
    names = {entry["cluster"]: entry["name"] for entry in clusters if entry["name"] is not None}
    parts = open_images(place, PixelOptions.model_validate(summary["pixels"]), out)
    return AssignedImages(parts, table, names, len(clusters), _root(place))


def _root(source: str) -> str | None:
    place = source.removeprefix("imagefolder:")
    return absolute(place) if "://" not in place and Path(place).is_dir() else None


def _claim(target: Folder, images: AssignedImages, options: dict[str, Any]) -> dict[str, Any] | None:
    """Record in the folder what it is for; returns the summary if the same call has finished there.

    ConfigError when the folder is for something else.
    """
    names = {str(cluster): name for cluster, name in images.names.items()}
    work = {"images": images.parts.stamp, "names": names, **options}
    before, there = target.read(WORK), target.names()
    if before is None and (others := [name for name in there if not is_of_system(name)]):
        raise ConfigError(f"{target.path} holds other files ({others[0]!r}, ...); choose a new folder")
    if before is not None and before != work:
        changed = [
            f"{key} {before.get(key)!r}, now {value!r}" for key, value in work.items() if before.get(key) != value
        ]
        raise ConfigError(
            f"{target.path} was sorted with other options: {'; '.join(changed)}; choose another folder, or delete it"
        )
    target.make().write(WORK, work)
    return target.read(SUMMARY)


def choose(table: pads.Dataset, folders: Sequence[str], choice: Choice) -> Array:
    """Whether each row (n,) is chosen."""
    columns = table.to_table(columns=["cluster", "similarity", "margin"])
    cluster, similarity, margin = (columns.column(name).to_numpy() for name in columns.column_names)
    chosen = margin >= choice.min_margin
    if choice.top is None:
        return chosen
    folder = np.unique(folders, return_inverse=True)[1][cluster]
    order = np.lexsort(
        (-similarity, ~chosen, folder)
    )  # by folder: the chosen first, and among them the most similar first
    start = np.searchsorted(folder[order], folder[order])
    chosen[order] &= np.arange(len(order)) - start < choice.top
    return chosen


def _write(
    images: AssignedImages,
    target: Folder,
    folders: Sequence[str],
    chosen: Array,
    choice: Choice,
    links: bool,
    echo: Echo,
) -> dict[str, int]:
    """Write the chosen images and their table; returns the number of images in each folder."""
    counts = dict.fromkeys(sorted(set(folders)), 0)
    names: defaultdict[str, UniqueNames] = defaultdict(partial(UniqueNames, stems=True))
    progress = Progress("sort", "images", int(chosen.sum()), 0, echo)
    with target.open_output(TABLE) as stream, pacsv.CSVWriter(stream, SCHEMA) as table:
        for number, (image, row) in enumerate(matched(images)):
            if not chosen[number]:
                continue
            folder = folders[row["cluster"]]
            counts[folder] += 1
            if choice.outliers == "apart" and row["outlier"] > OUTLIER:
                folder = f"{folder}/{OUTLIERS}"
            if folder not in names:
                target.subfolder(folder).make()
            # An original is not always what ingest made of it, and what a copy is: a HEIC file is a PNG in the shards.
            original = f"{images.root}/{image.path}"
            with _open_original(original) if links else io.BytesIO(image.data) as stream:
                name = image_file_name(image.path, stream.read(HEAD_BYTES))
                width, height = _size(stream, image.data)
            file = f"{folder}/{names[folder].give(name, number)}"
            if links:
                _link(f"{target.root}/{file}", original)
            else:
                target.write_bytes(file, image.data)
            known = {**row, "file": file, "name": images.names.get(row["cluster"]), "width": width, "height": height}
            table.write_table(pa.Table.from_pylist([known], SCHEMA))
            progress.add(1)
    return counts


def matched(images: AssignedImages) -> Iterator[tuple[EncodedImage, Row]]:
    """Each image that has a row, with that row.

    Raises
    ------
    DataError
        When the images are not those that were assigned.
    """
    rows = _rows(images.table)
    row = next(rows, None)
    for part in images.parts.parts:
        for image in part():
            if row and isinstance(image, EncodedImage) and (image.index, image.path) == (row["index"], row["path"]):
                yield image, row
                row = next(rows, None)
    if row is not None:
        raise DataError(
            f"{row['path']} is missing or has moved in {images.parts.name} since it was assigned; restore the images, "
            "or assign the current ones into another folder"
        )


def _rows(table: pads.Dataset) -> Iterator[Row]:
    for batch in table.to_batches(columns=["index", "path", "cluster", "similarity", "margin", "outlier"]):
        yield from batch.to_pylist()


def _size(stream: BinaryIO, stored: bytes) -> tuple[int, int]:
    """Width and height of a file's image before any EXIF rotation, or of the stored one if Pillow cannot read it."""
    with contextlib.suppress(UnidentifiedImageError), Image.open(stream) as image:
        return image.size
    with Image.open(io.BytesIO(stored)) as image:
        return image.size


def _open_original(file: str) -> BinaryIO:
    try:
        return open(file, "rb")
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}), so it cannot be linked; leave --links out to write copies"
        ) from error


def _link(place: str, original: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)
    os.symlink(original, place)
