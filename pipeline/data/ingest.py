"""Ingest: any source of images -> verified Parquet shards with a dense index, and their manifest.

Two passes over the parts of a source, each part a task of its own. The first verifies every image and writes
what is good below ``<out>/_ingest``; its report, written last, marks the part as done, so a killed ingest goes
on where it was. The second copies the parts into the shards, now that the first index of each is known. The
manifest comes last. No step depends on the order in which tasks end, so neither do the shards' bytes.

Tasks run on Ray when it is initialised, otherwise one after the other in this process. On a Ray cluster of
several machines both source and `out` must be reachable from all of them. One ingest per folder at a time.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image, UnidentifiedImageError
from pyarrow import fs as pafs
from pydantic import BaseModel

from pipeline.data.shards import (
    COLUMNS,
    IMAGE_TYPE,
    MANIFEST,
    QUARANTINE,
    QUARANTINE_CAP,
    WORK_FOLDER,
    DataError,
    ImageStatistics,
    Manifest,
    Quarantined,
    Shard,
    SourceInfo,
    filesystem,
    read_manifest,
    shard_schema,
    write_atomically,
)
from pipeline.data.sources import Part, Row, Source, open_source

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # PIL clips these to 8 bits instead of scaling
STATISTICS_SAMPLE = 4096  # images decoded for mean and std, roughly
PART_SCHEMA = pa.schema([(name, COLUMNS[name]) for name in ("image", "label")])
# Encoded images neither compress nor repeat; checksums let a reader tell a flipped bit from a bad picture.
WRITE_OPTIONS: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": ["label", "index"],
    "write_page_checksum": True,
}
GROUP_ROWS = 1024
GROUP_BYTES = 64 << 20  # a row group is what a reader holds at once
INGEST_VERSION = 1  # part of the identity of unfinished work: raise it when parts are written differently

Progress = Callable[[int, int, int], None]


class PartFile(BaseModel):
    """A finished file of verified rows, to become one shard."""

    file: str
    rows: int


class PartReport(BaseModel):
    """What became of one part. Pixel sums are over per-image means of RGB values in 0..1."""

    files: list[PartFile] = []
    quarantined: list[Quarantined] = []
    images: int = 0
    sampled: int = 0
    mean_sum: list[float] = [0.0, 0.0, 0.0]
    square_sum: list[float] = [0.0, 0.0, 0.0]
    widths: tuple[int, int] | None = None
    heights: tuple[int, int] | None = None


def ingest(source: str, out: str, *, rows_per_shard: int = 5000, on_progress: Progress | None = None) -> Manifest:
    """Turn `source` into shards in the folder `out`; go on where an earlier, killed call stopped.

    Parameters
    ----------
    source : str
        See `pipeline.data.sources`.
    out : str
        Local folder or filesystem URI. When it already holds this very source, its manifest is returned as it is.
    rows_per_shard : int
        Largest number of images in a shard; shards are smaller where images were quarantined.
    on_progress : callable, optional
        Called with (parts done, parts in all, images so far) at the start and after each verified part.

    Raises
    ------
    DataError
        For an unusable source, an `out` that is not writable or holds something else, or no readable image.
    """
    if rows_per_shard < 1:
        raise DataError(f"rows_per_shard is {rows_per_shard}; give 1 or more")
    opened = open_source(source, rows_per_shard)
    fs, root = filesystem(out)
    manifest = _already_there(opened, fs, root, out)
    if manifest is None:
        work = _open_work(opened, fs, root, out, rows_per_shard)
        reports = _verify(opened, out, work, rows_per_shard, on_progress)
        manifest = _assemble(opened, reports, out, work)
        manifest.write(out)
    if fs.get_file_info(f"{root}/{WORK_FOLDER}").type == pafs.FileType.Directory:
        fs.delete_dir(f"{root}/{WORK_FOLDER}")
    return manifest


# --- the folder ----------------------------------------------------------------------------------------------


def _already_there(source: Source, fs: pafs.FileSystem, root: str, out: str) -> Manifest | None:
    """The manifest of a finished ingest of `source`; an error when `out` belongs to something else."""
    if source.location and source.location[0].equals(fs) and f"{root}/".startswith(f"{source.location[1]}/"):
        raise DataError(f"{out} lies inside the source {source.name}; choose a folder outside of it")
    entries = _entries(fs, root, out)
    if MANIFEST in entries:
        manifest = read_manifest(out)
        if manifest.source.digest != source.digest:
            raise DataError(
                f"{out} holds the images of {manifest.source.source!r}, and {source.name!r} is another source "
                "or has changed since; choose another folder, or delete this one"
            )
        return manifest
    if entries and WORK_FOLDER not in entries:
        raise DataError(f"{out} holds other files ({entries[0]!r}, ...); choose an empty or a new folder")
    return None


def _entries(fs: pafs.FileSystem, root: str, out: str) -> list[str]:
    try:
        return sorted(info.base_name for info in fs.get_file_info(pafs.FileSelector(root, allow_not_found=True)))
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error}; choose a folder that can be listed and written") from error


def _open_work(source: Source, fs: pafs.FileSystem, root: str, out: str, rows_per_shard: int) -> str:
    """Create the work folder of this source and shard size, prove it writable, drop those of others."""
    key = f"v{INGEST_VERSION}-{rows_per_shard}-{source.digest[:16]}"
    work = f"{root}/{WORK_FOLDER}/{key}"
    try:
        fs.create_dir(work)
        write_atomically(fs, f"{work}/probe", b"")
        for info in fs.get_file_info(pafs.FileSelector(f"{root}/{WORK_FOLDER}")):
            if info.base_name != key:
                fs.delete_dir(info.path)
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error}; choose a folder that can be written") from error
    return work


# --- tasks ---------------------------------------------------------------------------------------------------


def _each(task: Callable[..., Any], calls: list[tuple[Any, ...]]) -> Iterator[Any]:
    """Run `task` on every tuple of arguments, on Ray when it is there, and yield the results as they come."""
    if len(calls) <= 1 or not ray.is_initialized():
        yield from itertools.starmap(task, calls)
        return
    remote = ray.remote(num_cpus=1)(task)
    pending = [remote.remote(*arguments) for arguments in calls]
    try:
        while pending:
            ready, pending = ray.wait(pending)
            yield ray.get(ready[0])
    finally:
        for reference in pending:  # an error or a closed generator: stop what was not asked for any more
            ray.cancel(reference)


# --- first pass: verify --------------------------------------------------------------------------------------


def _verify(source: Source, out: str, work: str, rows_per_shard: int, on_progress: Progress | None) -> list[PartReport]:
    """Reports of all parts, in order; parts that an earlier call finished are not done again."""
    fs, _ = filesystem(out)
    total = len(source.parts)
    reports = {k: report for k in range(total) if (report := _finished(fs, work, k))}
    stride = max(1, total * rows_per_shard // STATISTICS_SAMPLE)
    num_classes = len(source.class_names)
    calls = [
        (part, k, out, work, rows_per_shard, stride, num_classes)
        for k, part in enumerate(source.parts)
        if k not in reports
    ]
    _tell(on_progress, reports, total)
    for k, report in _each(_verify_part, calls):
        reports[k] = report
        _tell(on_progress, reports, total)
    return [reports[k] for k in range(total)]


def _tell(on_progress: Progress | None, reports: dict[int, PartReport], total: int) -> None:
    if on_progress:
        on_progress(len(reports), total, sum(report.images for report in reports.values()))


def _report_path(work: str, k: int) -> str:
    return f"{work}/part-{k:05d}.json"


def _finished(fs: pafs.FileSystem, work: str, k: int) -> PartReport | None:
    try:
        with fs.open_input_file(_report_path(work, k)) as file:
            return PartReport.model_validate_json(file.read())
    except FileNotFoundError:
        return None


def _verify_part(
    part: Part, k: int, out: str, work: str, rows_per_file: int, stride: int, num_classes: int
) -> tuple[int, PartReport]:
    """Write the good rows of part number `k` to files of `rows_per_file` rows, and the report that marks it done."""
    fs, _ = filesystem(out)
    report = PartReport()
    groups = _row_groups(_good_rows(part, report, stride, num_classes), rows_per_file)
    for number, file_groups in itertools.groupby(groups, key=lambda group: group[0]):
        name = f"part-{k:05d}-{number:05d}.parquet"
        rows = 0
        with pq.ParquetWriter(f"{work}/{name}", PART_SCHEMA, filesystem=fs, **WRITE_OPTIONS) as writer:
            for _, group in file_groups:
                writer.write_batch(_record_batch(group))
                rows += len(group)
        report.files.append(PartFile(file=name, rows=rows))
    write_atomically(fs, _report_path(work, k), report.model_dump_json().encode())
    return k, report


def _good_rows(part: Part, report: PartReport, stride: int, num_classes: int) -> Iterator[Row]:
    """Yield the rows that verify; count and measure them, and the quarantined, in `report`."""
    for position, row in enumerate(part.rows()):
        if isinstance(row, Quarantined):
            report.quarantined.append(row)
            continue
        try:
            _check_label(row.label, num_classes)
            image = _decode(row.data)
        except Exception as error:  # PIL's decoders raise whatever the bytes drive them to
            report.quarantined.append(Quarantined(path=row.where, reason=str(error) or repr(error)))
            continue
        _measure(image, report, sample=position % stride == 0)
        yield row


def _check_label(label: int, num_classes: int) -> None:
    if not -1 <= label < (num_classes or 2**63):
        raise ValueError(f"label {label} is outside -1..{(num_classes or 2**63) - 1} (-1 is unknown)")


def _decode(data: bytes) -> Image.Image:
    """The whole image in RGB; an error when any of it cannot be had faithfully."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:  # PIL's message holds a memory address, which would differ from run to run
        raise ValueError("no JPEG, PNG, WebP or TIFF, or its header is damaged") from None
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels, above the {limit} that are safe to decode")
    if image.mode in DEEP_MODES:
        raise ValueError(f"pixels of mode {image.mode} have more than 8 bits; scale them to 8 bits first")
    return image.convert("RGB")


def _measure(image: Image.Image, report: PartReport, *, sample: bool) -> None:
    report.images += 1
    report.widths = _widen(report.widths, image.width)
    report.heights = _widen(report.heights, image.height)
    if sample or not report.sampled:  # at least one a part, also when those of the stride are all quarantined
        pixels = np.asarray(image) / np.float32(255)
        report.sampled += 1
        report.mean_sum = (report.mean_sum + pixels.mean((0, 1), dtype=np.float64)).tolist()
        report.square_sum = (report.square_sum + np.square(pixels).mean((0, 1), dtype=np.float64)).tolist()


def _widen(span: tuple[int, int] | None, value: int) -> tuple[int, int]:
    return (min(span[0], value), max(span[1], value)) if span else (value, value)


def _row_groups(rows: Iterable[Row], rows_per_file: int) -> Iterator[tuple[int, list[Row]]]:
    """Cut rows into (file number, row group); a group is bounded in rows and in bytes."""
    group: list[Row] = []
    size = count = 0
    for row in rows:
        group.append(row)
        size += len(row.data)
        count += 1
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES or count % rows_per_file == 0:
            yield (count - 1) // rows_per_file, group
            group, size = [], 0
    if group:
        yield (count - 1) // rows_per_file, group


def _record_batch(rows: list[Row]) -> pa.RecordBatch:
    data = pa.array([row.data for row in rows], pa.binary())
    paths = pa.array([row.path.encode("utf-8", "backslashreplace").decode() for row in rows], pa.string())
    images = pa.StructArray.from_arrays([data, paths], fields=list(IMAGE_TYPE))
    return pa.record_batch([images, pa.array([row.label for row in rows], pa.int64())], schema=PART_SCHEMA)


# --- second pass: shards and manifest ------------------------------------------------------------------------


def _assemble(source: Source, reports: list[PartReport], out: str, work: str) -> Manifest:
    """Write the quarantine list and the shards; return the manifest that declares them complete."""
    fs, root = filesystem(out)
    quarantined = [*source.quarantined, *(entry for report in reports for entry in report.quarantined)]
    lines = "".join(f"{entry.model_dump_json()}\n" for entry in quarantined)
    write_atomically(fs, f"{root}/{QUARANTINE}", lines.encode())
    files = [file for report in reports for file in report.files]
    if not files:
        first = f"{quarantined[0].path}: {quarantined[0].reason}"
        raise DataError(f"{source.name!r} has no readable image; see {out}/{QUARANTINE}, which starts with {first}")
    shards = _write_shards(files, out, work, source.class_names)
    return Manifest(
        num_images=sum(shard.rows for shard in shards),
        class_names=list(source.class_names),
        statistics=_statistics(reports),
        source=SourceInfo(source=source.name, kind=source.kind, digest=source.digest),
        shards=shards,
        quarantined_count=sum(entry.rows for entry in quarantined),
        quarantined=quarantined[:QUARANTINE_CAP],
    )


def _write_shards(files: list[PartFile], out: str, work: str, class_names: tuple[str, ...]) -> list[Shard]:
    fs, root = filesystem(out)
    for info in fs.get_file_info(pafs.FileSelector(root)):
        if info.base_name.startswith("shard-"):  # of an ingest that was killed here before its source changed
            fs.delete_file(info.path)
    firsts = itertools.accumulate((file.rows for file in files), initial=0)
    calls = [
        (out, f"{work}/{file.file}", f"shard-{i:05d}.parquet", first, class_names)
        for i, (file, first) in enumerate(zip(files, firsts))  # noqa: B905 - firsts ends with the total
    ]
    return sorted(_each(_write_shard, calls), key=lambda shard: shard.first_index)


def _write_shard(out: str, part_file: str, name: str, first: int, class_names: tuple[str, ...]) -> Shard:
    """Copy a part's file to the shard `name`, adding the indices from `first` on."""
    fs, root = filesystem(out)
    schema = shard_schema(class_names)
    index = first
    with (
        fs.open_input_file(part_file) as handle,
        pq.ParquetWriter(f"{root}/{name}", schema, filesystem=fs, **WRITE_OPTIONS) as writer,
    ):
        file = pq.ParquetFile(handle)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            indices = pa.array(np.arange(index, index + len(table)))
            writer.write_table(pa.table([table["image"], table["label"], indices], schema=schema))
            index += len(table)
    size = fs.get_file_info(f"{root}/{name}").size
    return Shard(file=name, rows=index - first, bytes=size, first_index=first)


def _statistics(reports: list[PartReport]) -> ImageStatistics:
    sampled = sum(report.sampled for report in reports)
    mean = np.sum([report.mean_sum for report in reports], axis=0) / sampled
    square = np.sum([report.square_sum for report in reports], axis=0) / sampled
    std = np.sqrt(np.maximum(square - mean**2, 0))  # rounding can take a constant image below zero
    widths = [width for report in reports for width in report.widths or ()]
    heights = [height for report in reports for height in report.heights or ()]
    return ImageStatistics(
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        sampled=sampled,
        min_width=min(widths),
        max_width=max(widths),
        min_height=min(heights),
        max_height=max(heights),
    )
