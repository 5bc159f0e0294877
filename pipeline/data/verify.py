"""The first pass of an ingest: every image decoded once; the good rows of a part into one file, and its report.

A part's report is written after its file, so that it marks the part as done.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from pyarrow import fs as pafs
from pydantic import BaseModel

from pipeline.data.shards import COLUMNS, GROUP_BYTES, IMAGE_TYPE, WRITE_OPTIONS, ImageStatistics, Quarantined
from pipeline.data.sources import Part, Row, Source
from pipeline.data.tasks import run_each
from pipeline.storage import filesystem, write_atomically

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # PIL clips these to 8 bits instead of scaling
STATISTICS_SAMPLE = 4096  # images decoded for mean and std, roughly
PART_SCHEMA = pa.schema([(name, COLUMNS[name]) for name in ("image", "label")])

Progress = Callable[[int, int, int], None]


class PartReport(BaseModel):
    """What became of one part. Pixel sums are over per-image means of RGB values in 0..1."""

    groups: list[int] = []
    """Rows of each row group of the part's file."""
    quarantined: list[Quarantined] = []
    images: int = 0
    sampled: int = 0
    mean_sum: list[float] = [0.0, 0.0, 0.0]
    square_sum: list[float] = [0.0, 0.0, 0.0]
    widths: tuple[int, int] | None = None
    heights: tuple[int, int] | None = None


def part_file(work: str, k: int) -> str:
    """Path of the verified rows of part number `k`."""
    return f"{work}/part-{k:05d}.parquet"


def verify_parts(
    source: Source, out: str, work: str, rows_per_part: int, rows_per_group: int, on_progress: Progress | None
) -> list[PartReport]:
    """Reports of all parts, in order; parts that an earlier call finished are not done again."""
    fs, _ = filesystem(out)
    total = len(source.parts)
    reports = {k: report for k in range(total) if (report := _finished(fs, work, k))}
    stride = max(1, total * rows_per_part // STATISTICS_SAMPLE)
    num_classes = len(source.class_names)
    calls = [
        (part, k, out, work, rows_per_group, stride, num_classes)
        for k, part in enumerate(source.parts)
        if k not in reports
    ]
    _tell(on_progress, reports, total)
    for k, report in run_each(_verify_part, calls):
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
    part: Part, k: int, out: str, work: str, rows_per_group: int, stride: int, num_classes: int
) -> tuple[int, PartReport]:
    """Write the good rows of part number `k`, and the report that marks it done."""
    fs, _ = filesystem(out)
    report = PartReport()
    with pq.ParquetWriter(part_file(work, k), PART_SCHEMA, filesystem=fs, **WRITE_OPTIONS) as writer:
        for group in _row_groups(_good_rows(part, report, stride, num_classes), rows_per_group):
            writer.write_batch(_record_batch(group))
            report.groups.append(len(group))
    write_atomically(fs, _report_path(work, k), report.model_dump_json().encode())
    return k, report


def _good_rows(part: Part, report: PartReport, stride: int, num_classes: int) -> Iterator[Row]:
    """Yield the rows that verify; count and measure them, and the quarantined, in `report`."""
    for position, row in enumerate(part()):
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


def _row_groups(rows: Iterable[Row], rows_per_group: int) -> Iterator[list[Row]]:
    """Cut rows into row groups, bounded in rows and in bytes."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.data)
        if len(group) == rows_per_group or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _record_batch(rows: list[Row]) -> pa.RecordBatch:
    data = pa.array([row.data for row in rows], pa.binary())
    paths = pa.array([row.path.encode("utf-8", "backslashreplace").decode() for row in rows], pa.string())
    images = pa.StructArray.from_arrays([data, paths], fields=list(IMAGE_TYPE))
    return pa.record_batch([images, pa.array([row.label for row in rows], pa.int64())], schema=PART_SCHEMA)


def statistics(reports: list[PartReport]) -> ImageStatistics:
    """The statistics of all parts together."""
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
