"""The features and predictions of a run's own images, which its last E-step leaves in the run's folder.

Every worker writes the rows that it owns as one Parquet part, named after the number of workers and the E-step's
centres. A run that was killed or rolled back at that point and then resumed leaves the parts of several E-steps.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.clustering.nearest import dot_chunks
from pipeline.collectives import RowRange, rank, world_size
from pipeline.errors import DataError
from pipeline.inference.predict import Prediction, predict
from pipeline.method.losses import unit
from pipeline.storage import Folder, remedy_for

FEATURES = "features"  # folder of the parts, in a run's folder
AGREEMENT = "agreement"  # column of a consensus: the share of its members that put the image into the same cluster
SEEN = "seen_"  # columns of the exported model, which sees an image once; with estep.fit_views it is clustered by views
SEEN_COLUMNS = ["cluster", "similarity", "feature"]
ROW_GROUP_ROWS = 8192
BLOCK_ROW_GROUPS = 2  # row groups that are read at a time
_REMEDY = "run its `digpro train` again under another name (--set name=...)"


@torch.inference_mode()
def write_features(run: Folder, features: Tensor, centers: Tensor, own: RowRange, seen: Tensor | None = None) -> None:
    """Write the features (own rows, D) of this worker's images, and the prediction of each by centres (K, D).

    `seen` (own rows, D) are the features that the exported model has for the images, if others were clustered. One row
    group at a time is made and written, so that memory does not grow with the images.
    """
    index = torch.arange(own.start, own.stop)
    columns = [rows.split(ROW_GROUP_ROWS) for rows in (features, index, *([] if seen is None else [seen]))]
    write_part(run, (feature_table(group[0], centers, *group[1:]) for group in zip(*columns, strict=True)), centers)


def feature_table(features: Tensor, centers: Tensor, index: Tensor, seen: Tensor | None = None) -> pa.Table:
    """The features (n, D) of the images `index` (n,), and the prediction of each by centres (K, D).

    The features `seen` (n, D) and their predictions become the columns that begin with `SEEN`.
    """
    table = prediction_table(_predict_rows(features, centers), index=index, features=features)
    if seen is None:
        return table
    as_seen = prediction_table(_predict_rows(seen, centers), features=seen)
    for name in SEEN_COLUMNS:
        table = table.append_column(SEEN + name, as_seen[name])
    return table


def write_part(run: Folder, tables: Iterator[pa.Table], centers: Tensor) -> None:
    """Write this worker's part of a run's features, a table at a time; `centers` (K, D) made their predictions."""
    folder, first = run.subfolder(FEATURES).make(), next(tables)
    with (
        folder.open_output(_part(rank(), world_size(), _digest(centers))) as stream,
        pq.ParquetWriter(stream, first.schema, write_page_checksum=True) as writer,
    ):
        for table in itertools.chain([first], tables):
            writer.write_table(table)


def _predict_rows(rows: Tensor, centers: Tensor) -> Prediction:
    """The predictions of unit rows (n, D) by centres (K, D).

    They are written into tensors that are there before: between the large products, small results that stay would keep
    the allocator from using the space of a product again.
    """
    types = (torch.int64, torch.float32, torch.int64, torch.float32)
    found = Prediction(*(torch.empty(len(rows), dtype=dtype, device=rows.device) for dtype in types))
    for where, cosines in dot_chunks(rows, centers):
        for column, values in zip(found, predict(cosines.float()), strict=True):
            column[where] = values
    return found


def prediction_table(
    prediction: Prediction, *, index: Tensor | None = None, features: Tensor | None = None
) -> pa.Table:
    """A row for each image: its index if given, the prediction, and its features as float16 if given."""
    columns: dict[str, pa.Array] = {} if index is None else {"index": pa.array(index.numpy())}
    columns |= {name: pa.array(values.cpu().numpy()) for name, values in prediction._asdict().items()}
    if features is not None:
        flat = pa.array(features.half().cpu().numpy().reshape(-1))
        columns["feature"] = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
    return pa.table(columns)


def _digest(centers: Tensor) -> str:
    """Eight characters that tell the centres of one E-step from those of another."""
    return hashlib.sha256(centers.cpu().contiguous().numpy().tobytes()).hexdigest()[:8]


def _part(of_rank: int, workers: int, digest: str) -> str:
    return f"part-{of_rank:05d}-of-{workers:05d}-{digest}.parquet"


def keep_last_parts(run: Folder, centers: Tensor) -> None:
    """Delete all parts except those of the E-step that found these centres (K, D), which are the run's.

    Raises
    ------
    DataError
        When those parts are not complete.
    """
    folder = run.subfolder(FEATURES)
    there = folder.names("part-")
    own = _complete_parts(there, _digest(centers))
    if not own:
        raise DataError(
            f"{folder.path} no longer holds the features of all images that the last E-step wrote; {_REMEDY}"
        )
    for name in set(there) - own:
        folder.delete(name)


def _complete_parts(names: Sequence[str], digest: str) -> set[str]:
    """A complete set of parts with these centres, from any number of workers; empty if there is none."""
    for workers in range(1, len(names) + 1):
        expected = {_part(of_rank, workers, digest) for of_rank in range(workers)}
        if expected <= set(names):
            return expected
    return set()


def features_of(table: pa.Table, column: str = "feature") -> np.ndarray[Any, Any]:
    """The features (n, D) float16 in a column, read-only."""
    flat = table.column(column).combine_chunks().flatten().to_numpy()
    return flat.reshape(len(table), -1)


def seen_by_model(run: Folder) -> str:
    """What the columns of the exported model begin with, in a run's features: nothing where it clustered by the same.

    Raises
    ------
    DataError
        As `open_features`.
    """
    return SEEN if SEEN + SEEN_COLUMNS[0] in open_features(run).schema.names else ""


def has_features(run: Folder) -> bool:
    """Whether a run's folder holds features of its images."""
    return bool(run.subfolder(FEATURES).names("part-"))


def open_features(run: Folder) -> pads.Dataset:
    """The rows of all images of a finished run, part by part; read them block by block.

    Raises
    ------
    DataError
        When the run's folder has none: it is not finished, or an earlier version finished it.
    """
    folder = run.subfolder(FEATURES)
    parts = [f"{folder.root}/{name}" for name in folder.names("part-")]
    if not parts:
        raise DataError(
            f"{run.path} holds no features of its images, although every finished run stores them; {_REMEDY}"
        )
    return pads.dataset(parts, filesystem=folder.files, format="parquet")


def feature_blocks(run: Folder, columns: Sequence[str], total: int) -> Iterator[pa.Table]:
    """The `index` and these columns of all `total` images of a finished run in order of the index, block by block.

    A block has at most `BLOCK_ROW_GROUPS` row groups, so that memory does not grow with the number of images.

    Raises
    ------
    DataError
        When there are none, or they are damaged or not one for each image in order.
    """
    done = 0
    try:
        for table in _row_groups(run, ["index", *columns]):
            index = table.column("index").to_numpy()
            if not np.array_equal(index, np.arange(done, done + len(index))):
                raise DataError(
                    f"{run.file(FEATURES)} has index {index[0]} to {index[-1]} where {done} should follow; {_REMEDY}"
                )
            done += len(index)
            yield table
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{run.file(FEATURES)} cannot be read ({error}); {remedy_for(error, _REMEDY)}") from error
    if done != total:
        raise DataError(f"{run.file(FEATURES)} has {done:,} features, not one for each of {total:,} images; {_REMEDY}")


def clusters_of_images(run: Folder, total: int) -> np.ndarray[Any, Any]:
    """Clusters (total,) int32 of a run's images, as its last E-step left them; trials of a search have nothing else.

    Raises
    ------
    DataError
        As `feature_blocks`.
    """
    blocks = feature_blocks(run, ["cluster"], total)
    return np.concatenate([table.column("cluster").to_numpy().astype(np.int32) for table in blocks])


def _row_groups(run: Folder, columns: list[str]) -> Iterator[pa.Table]:
    """Read several row groups at a time: a request to an object store takes as long for a single one."""
    files = run.files
    for part in open_features(run).files:
        with files.open_input_file(part) as handle:
            file = pq.ParquetFile(handle, pre_buffer=True, page_checksum_verification=True)
            groups = range(file.num_row_groups)
            for first in groups[::BLOCK_ROW_GROUPS]:
                yield file.read_row_groups(list(groups[first : first + BLOCK_ROW_GROUPS]), columns=columns)


def read_features(run: Folder, count: int | None = None, first: int = 0) -> Tensor:
    """Unit features (n, D) float32 of a finished run, in order of the index: of `count` images from number `first` on.

    Without `count`, of all images from there on.

    Raises
    ------
    DataError
        When there are none, or they are damaged or not one for each image.
    """
    try:
        wanted = pads.field("index") >= first
        if count is not None:
            wanted &= pads.field("index") < first + count
        table = open_features(run).filter(wanted).to_table(columns=["index", "feature"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{run.file(FEATURES)} cannot be read ({error}); {remedy_for(error, _REMEDY)}") from error
    index = table.column("index").to_numpy()
    order = np.argsort(index)
    if not np.array_equal(index[order], np.arange(first, first + (len(index) if count is None else count))):
        raise DataError(f"{run.file(FEATURES)} has {len(index):,} features, not one for each image; {_REMEDY}")
    return unit(torch.from_numpy(features_of(table)[order]).float())
