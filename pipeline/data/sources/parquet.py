"""Parquet files in the Hugging Face image layout, or with a plain binary column of images."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from pipeline.data.shards import Quarantined
from pipeline.data.sources.base import UNKNOWN_LABEL, Row, Source, digest, find, named_classes, pack, relative
from pipeline.errors import DataError
from pipeline.storage import filesystem


def open_parquet(source: str, path: str, rows_per_part: int) -> Source:
    """The Parquet files at or below `path`, cut into parts of `rows_per_part` rows, whatever file they lie in."""
    fs, root = filesystem(path)
    files = find(fs, root, (".parquet",))
    if not files:
        raise DataError(f"no .parquet file in {path}; give a folder that holds some, or one such file")
    with ThreadPoolExecutor(16) as pool:  # remote footers are latency, not work
        footers = list(pool.map(lambda info: _footer(fs, info.path, relative(info.path, root)), files))
    lost = tuple(footer for footer in footers if isinstance(footer, Quarantined))
    named = [(info.path, relative(info.path, root), m) for info, m in zip(files, footers, strict=True)]
    good = [(path, name, m) for path, name, m in named if isinstance(m, pq.FileMetaData)]
    folder = root if len(files) != 1 or files[0].path != root else posixpath.dirname(root)
    class_names = _metadata_classes(good) or named_classes(fs, folder)
    spans = pack([metadata.num_rows for _, _, metadata in good], rows_per_part)
    parts = tuple(partial(_rows, fs, tuple((*good[i][:2], a, b) for i, a, b in part)) for part in spans)
    return Source(source, "parquet", class_names, parts, digest("parquet", class_names, files, root), (fs, root), lost)


def _rows(fs: pafs.FileSystem, spans: tuple[tuple[str, str, int, int], ...]) -> Iterator[Row | Quarantined]:
    """The rows of every span (path, name, start, stop); what damage hides is quarantined, the others go on."""
    for path, name, start, stop in spans:
        try:
            with fs.open_input_file(path) as handle:
                yield from _span_rows(pq.ParquetFile(handle), name, start, stop)
        except (OSError, pa.ArrowException) as error:
            yield _lost_rows(name, start, stop, error)


def _span_rows(file: pq.ParquetFile, name: str, start: int, stop: int) -> Iterator[Row | Quarantined]:
    """Rows `start` to `stop` of a file, reading only the row groups that hold them."""
    last = 0
    for group in range(file.num_row_groups):
        first, last = last, last + file.metadata.row_group(group).num_rows
        if first < stop and start < last:
            yield from _group_rows(file, group, first, name, max(start, first), min(stop, last))


def _group_rows(
    file: pq.ParquetFile, group: int, position: int, name: str, start: int, stop: int
) -> Iterator[Row | Quarantined]:
    """Rows `start` to `stop` of the file, all in the row group that begins at row `position`."""
    label = _label_column(file.schema_arrow, name)
    row = start
    try:
        for batch in file.iter_batches(256, row_groups=[group], columns=["image"] + ([label] if label else [])):
            wanted = batch.slice(max(start - position, 0), max(stop - max(start, position), 0))
            position += len(batch)
            labels = wanted.column(label).to_pylist() if label else [None] * len(wanted)
            for image, value in zip(wanted.column("image").to_pylist(), labels, strict=True):
                yield _parquet_row(f"{name} row {row}", image, value)
                row += 1
    except (OSError, pa.ArrowException) as error:
        yield _lost_rows(name, row, stop, error)


def _lost_rows(name: str, start: int, stop: int, error: Exception) -> Quarantined:
    return Quarantined(path=name, reason=f"rows {start} to {stop - 1} cannot be read: {error}", rows=stop - start)


def _parquet_row(where: str, image: Any, label: int | None) -> Row | Quarantined:
    data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
    if path:
        where = f"{where} ({path})"
    if data is None:
        return Quarantined(path=where, reason="the image's bytes are null; embed the file in the Parquet")
    return Row(data, path or where, UNKNOWN_LABEL if label is None else label, where)


def _footer(fs: pafs.FileSystem, path: str, name: str) -> pq.FileMetaData | Quarantined:
    """The footer of a file whose columns are usable, or the damage that keeps it from being read.

    Raises
    ------
    DataError
        When the file is sound but its columns are not those of an image data set.
    """
    try:
        with fs.open_input_file(path) as handle:
            metadata = pq.read_metadata(handle)
            schema = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        return Quarantined(path=name, reason=f"no readable Parquet, perhaps cut short: {error}")
    _check_image_column(schema, path)
    _label_column(schema, path)
    return metadata


def _check_image_column(schema: pa.Schema, path: str) -> None:
    if "image" not in schema.names:
        raise DataError(f"{path} has no column 'image', only {schema.names}; rename the column of encoded images")
    kind = schema.field("image").type
    value = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(value) or pa.types.is_large_binary(value)):
        raise DataError(f"{path}: column 'image' is {kind}; it must be binary or struct<bytes: binary, path: string>")


def _label_column(schema: pa.Schema, path: str) -> str | None:
    name = next((name for name in ("label", "labels") if name in schema.names), None)
    if name and not pa.types.is_integer(schema.field(name).type):
        raise DataError(f"{path}: column {name!r} is {schema.field(name).type}; it must be an integer, or be dropped")
    return name


def _metadata_classes(files: Iterable[tuple[str, str, pq.FileMetaData]]) -> tuple[str, ...]:
    """The ClassLabel names in the files' ``huggingface`` metadata; all that name classes must agree."""
    found = {_class_label_names(metadata, path): path for path, _, metadata in files}
    found.pop((), None)
    if len(found) > 1:
        raise DataError(f"the files name different classes: {found}; ingest them as separate data sets")
    return next(iter(found), ())


def _class_label_names(metadata: pq.FileMetaData, path: str) -> tuple[str, ...]:
    raw = (metadata.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(raw).get("info", {}).get("features", {})
        label = features.get("label") or features.get("labels") or {}
        return tuple(label.get("names") or ())
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: the 'huggingface' metadata is malformed ({error}); rewrite the file without it"
        ) from None
