"""Parquet files in the Hugging Face image layout, or with a plain binary column of images."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from pipeline.data.shards import Quarantined
from pipeline.data.sources.base import UNKNOWN_LABEL, Row, Source, named_classes, pack, stamp
from pipeline.data.sources.listing import File, list_files, open_file, printable
from pipeline.errors import DataError, did_you_mean
from pipeline.storage import filesystem, raise_storage_fault

PARQUET_SUFFIXES = (".parquet", ".pq")


class Columns(NamedTuple):
    """The columns of encoded images and of integer labels; in a request, None means to detect it."""

    image: str | None = None
    label: str | None = None


DETECT = Columns()


class Table(NamedTuple):
    """A sound Parquet file: where it is, its name, its length and the columns to read."""

    path: str
    name: str
    rows: int
    columns: Columns
    class_names: tuple[str, ...]


def open_parquet(source: str, path: str, rows_per_part: int, wanted: Columns = DETECT) -> Source:
    """The Parquet files at or below `path`, cut into parts of `rows_per_part` rows across files."""
    fs, root = filesystem(path)
    listing = list_files(fs, root)
    is_file = [file.path for file in listing.files] == [root]
    if not is_file:
        listing = listing.keep(lambda name: name.lower().endswith(PARQUET_SUFFIXES), "not a Parquet file")
    if not listing.files:
        raise DataError(f"there is no .parquet file in {path!r}; give a folder of .parquet files, or one .parquet file")
    with ThreadPoolExecutor(16) as pool:  # remote footers are latency, not work
        opened = list(pool.map(lambda file: _open_table(fs, file, wanted), listing.files))
    lost = [*listing.quarantined, *(table for table in opened if isinstance(table, Quarantined))]
    tables = [table for table in opened if isinstance(table, Table)]
    class_names = _agreed_classes(tables) or named_classes(fs, posixpath.dirname(root) if is_file else root)
    spans = pack([table.rows for table in tables], rows_per_part)
    parts = tuple(partial(_rows, fs, tuple((tables[i], a, b) for i, a, b in part)) for part in spans)
    seen = sum(table.rows for table in tables) + len(lost) + len(listing.left_out)
    mark = stamp(f"parquet {tuple(wanted)}", class_names, listing.files)
    left_out = tuple(listing.left_out)
    return Source(source, "parquet", class_names, parts, "rows", seen, mark, (fs, root), tuple(lost), left_out)


def _rows(fs: pafs.FileSystem, spans: tuple[tuple[Table, int, int], ...]) -> Iterator[Row | Quarantined]:
    """The rows of every span (table, start, stop); rows lost to damage are quarantined, and the others are kept."""
    for table, start, stop in spans:
        try:
            file = pq.ParquetFile(open_file(fs, table.path))
        except (OSError, pa.ArrowException) as error:
            raise_storage_fault(error)
            yield _lost_rows(table.name, start, stop, error)
            continue
        with file:
            yield from _span_rows(file, table, start, stop)


def _span_rows(file: pq.ParquetFile, table: Table, start: int, stop: int) -> Iterator[Row | Quarantined]:
    """Rows `start` to `stop` of a file, reading only the row groups that hold them."""
    last = 0
    for group in range(file.num_row_groups):
        first, last = last, last + file.metadata.row_group(group).num_rows
        if first < stop and start < last:
            yield from _row_group_rows(file, group, first, table, max(start, first), min(stop, last))


def _row_group_rows(
    file: pq.ParquetFile, group: int, position: int, table: Table, start: int, stop: int
) -> Iterator[Row | Quarantined]:
    """Rows `start` to `stop` of the file, all in the row group that begins at row `position`."""
    image, label = table.columns
    row, problem = start, "the row group ends before these rows"
    try:
        for batch in file.iter_batches(256, row_groups=[group], columns=[image, *([label] if label else [])]):
            wanted = batch.slice(max(start - position, 0), max(stop - max(start, position), 0))
            position += len(batch)
            labels = wanted.column(label).to_pylist() if label else [None] * len(wanted)
            for value, number in zip(wanted.column(image).to_pylist(), labels, strict=True):
                yield _row(f"{table.name} row {row}", value, number)
                row += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise_storage_fault(error)
        problem = str(error)
    if row < stop:
        yield _lost_rows(table.name, row, stop, problem)


def _lost_rows(name: str, start: int, stop: int, problem: object) -> Quarantined:
    return Quarantined(path=name, reason=f"rows {start} to {stop - 1} cannot be read: {problem}", rows=stop - start)


def _row(where: str, image: Any, label: int | None) -> Row | Quarantined:
    data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
    if path:
        where = f"{where} ({path})"
    if data is None:
        return Quarantined(path=where, reason="the image's bytes are null; store the image itself in the Parquet file")
    return Row(data, path or where, UNKNOWN_LABEL if label is None else label, where)


def _open_table(fs: pafs.FileSystem, file: File, wanted: Columns) -> Table | Quarantined:
    """A file whose columns are usable, or the damage that keeps it from being read.

    Raises
    ------
    DataError
        When the file is sound but its columns are not those of an image data set.
    """
    name = printable(file.name)
    try:
        with open_file(fs, file.path) as handle:
            metadata = pq.read_metadata(handle)
            schema = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        raise_storage_fault(error)
        return Quarantined(path=name, reason=f"not a readable Parquet file, perhaps cut short: {error}")
    features = _features(metadata, file.path)
    columns = Columns(_image_column(schema, features, wanted, file.path), _label_column(schema, features, wanted, name))
    names = features.get(columns.label or "label", {}).get("names") or ()
    return Table(file.path, name, metadata.num_rows, columns, tuple(str(name) for name in names))


def _features(metadata: pq.FileMetaData, path: str) -> dict[str, dict[str, Any]]:
    """The features that Hugging Face ``datasets`` describes in the file: column -> its type."""
    raw = (metadata.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(raw).get("info", {}).get("features", {})
        return {column: feature for column, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: the 'huggingface' metadata is malformed ({error}); rewrite the file without it"
        ) from None


def _image_column(schema: pa.Schema, features: dict[str, dict[str, Any]], wanted: Columns, path: str) -> str:
    """The requested column, or 'image', or the only one of type Image or, without such types, struct<bytes, path>."""
    if wanted.image is not None or "image" in schema.names:
        name = _existing(wanted.image or "image", schema, path, "--image-column")
        if not _holds_bytes(schema.field(name).type):
            kind = schema.field(name).type
            raise DataError(
                f"{path}: column {name!r} is {kind}; it must be binary or struct<bytes: binary, path: string>"
            )
        return name
    typed = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    found = typed or [name for name in schema.names if pa.types.is_struct(schema.field(name).type)]
    found = [name for name in found if _holds_bytes(schema.field(name).type)]
    if len(found) == 1:
        return found[0]
    what = f"several columns of images, {found}" if found else f"no column 'image' but {schema.names}"
    raise DataError(f"{path} has {what}; name the column of encoded images with --image-column")


def _holds_bytes(kind: pa.DataType) -> bool:
    value = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    return pa.types.is_binary(value) or pa.types.is_large_binary(value) or pa.types.is_binary_view(value)


def _label_column(schema: pa.Schema, features: dict[str, dict[str, Any]], wanted: Columns, path: str) -> str | None:
    """The requested column, or 'label' or 'labels', or the only one of type ClassLabel; None without any of these."""
    usual = [name for name in ("label", "labels") if name in schema.names]
    typed = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    if wanted.label is None and not usual and len(typed) > 1:
        raise DataError(f"{path} has several columns of classes, {typed}; name one with --label-column")
    name = wanted.label or next(iter(usual or typed), None)
    if name is None:
        return None
    kind = schema.field(_existing(name, schema, path, "--label-column")).type
    if not pa.types.is_integer(kind):
        raise DataError(
            f"{path}: column {name!r} is {kind}; labels must be integers; name another column with --label-column"
        )
    return name


def _existing(name: str, schema: pa.Schema, path: str, option: str) -> str:
    if name not in schema.names:
        hint = did_you_mean(name, schema.names)
        raise DataError(
            f"{option} is {name!r}, but {path} has the columns {schema.names}{hint or '; choose one of them'}"
        )
    return name


def _agreed_classes(tables: Iterable[Table]) -> tuple[str, ...]:
    """The names of the classes in the files' ``huggingface`` metadata; all files that name classes must agree."""
    found = {table.class_names: table.path for table in tables}
    found.pop((), None)
    if len(found) > 1:
        raise DataError(f"the files name different classes: {found}; ingest them as separate data sets")
    return next(iter(found), ())
