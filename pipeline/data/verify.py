"""The first pass of an ingest: decodes every image once, and writes the good rows of each part to a file, and a report.

A part's report is written after its file, so that it marks the part as done.
"""

from __future__ import annotations

import posixpath
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import reduce

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import fs as pafs
from pydantic import BaseModel

from pipeline.data.moments import Moments
from pipeline.data.pixel_options import PixelOptions
from pipeline.data.pixels import png, read_picture
from pipeline.data.shards import COLUMNS, IMAGE_TYPE, WRITE_OPTIONS, ImageStatistics, Quarantined
from pipeline.data.sources import Row, Source, SourcePart
from pipeline.data.tally import PartTally, tallied_rows
from pipeline.data.tasks import run_each
from pipeline.errors import first_line
from pipeline.storage import filesystem, write_atomically

HELD_BYTES = 64 << 20  # encoded images that a task holds at once, in both passes
STATISTICS_SAMPLE = 4096  # images measured for mean and std, roughly
PART_SCHEMA = pa.schema([(name, COLUMNS[name]) for name in ("image", "label")])

OnProgress = Callable[[int, int, int], None]


class VerifyReport(BaseModel):
    """The result of verifying one part."""

    groups: list[int] = []
    """Rows of each row group of the part's file."""
    tally: PartTally = PartTally()
    images: int = 0
    labels: Counter[int] = Counter()
    """Images of each label."""
    rewritten: int = 0
    """Images re-encoded as PNG."""
    moments: Moments = Moments()
    widths: tuple[int, int] | None = None
    heights: tuple[int, int] | None = None


def part_file(work: str, k: int) -> str:
    """Path of the verified rows of part number `k`."""
    return f"{work}/part-{k:05d}.parquet"


def verify_parts(
    source: Source,
    pixels: PixelOptions,
    out: str,
    work: str,
    rows_per_part: int,
    rows_per_group: int,
    on_progress: OnProgress | None,
) -> tuple[list[VerifyReport], Counter[int]]:
    """Reports of all parts, in order, and the images of each label; parts that an earlier call finished are reused.

    Labels are dropped from the reports once summed: with many classes they would take most of the driver's memory.
    """
    fs, _ = filesystem(out)
    total = len(source.parts)
    found = _Found(total, on_progress)
    for k, report in _finished(fs, work, total):
        found.add(k, report)
    found.report_progress()
    stride = max(1, total * rows_per_part // STATISTICS_SAMPLE)
    calls = (
        (part, k, out, work, pixels, rows_per_group, stride, len(source.class_names))
        for k, part in enumerate(source.parts)
        if k not in found.reports
    )
    for k, report in run_each(_verify_part, calls):
        found.add(k, report)
        found.report_progress()
    return [found.reports[k] for k in range(total)], found.labels


class _Found:
    """The reports so far, by part number, and sums over them."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.total = total
        self.on_progress = on_progress
        self.reports: dict[int, VerifyReport] = {}
        self.labels = Counter[int]()
        self.images = 0

    def add(self, k: int, report: VerifyReport) -> None:
        """Add the report of part number `k`."""
        self.labels.update(report.labels)
        self.images += report.images
        self.reports[k] = report.model_copy(update={"labels": Counter()})

    def report_progress(self) -> None:
        """Call `on_progress` if it is given."""
        if self.on_progress:
            self.on_progress(len(self.reports), self.total, self.images)


def _report_path(work: str, k: int) -> str:
    return f"{work}/part-{k:05d}.json"


def _finished(fs: pafs.FileSystem, work: str, total: int) -> Iterator[tuple[int, VerifyReport]]:
    """The parts that an earlier call finished, with their reports."""
    there = {info.base_name for info in fs.get_file_info(pafs.FileSelector(work))}
    for k in range(total):
        if posixpath.basename(_report_path(work, k)) in there:
            with fs.open_input_file(_report_path(work, k)) as file:
                yield k, VerifyReport.model_validate_json(file.read())


def _verify_part(
    part: SourcePart,
    k: int,
    out: str,
    work: str,
    pixels: PixelOptions,
    rows_per_group: int,
    stride: int,
    num_classes: int,
) -> tuple[int, VerifyReport]:
    """Write the good rows of part number `k`, and the report that marks it done."""
    fs, _ = filesystem(out)
    report = VerifyReport()
    with (
        warnings.catch_warnings(action="ignore"),  # the reasons say what Pillow warns about
        pq.ParquetWriter(part_file(work, k), PART_SCHEMA, filesystem=fs, **WRITE_OPTIONS) as writer,
    ):
        for group in _row_groups(_good_rows(part, report, pixels, stride, num_classes), rows_per_group):
            writer.write_batch(_record_batch(group))
            report.groups.append(len(group))
    write_atomically(fs, _report_path(work, k), report.model_dump_json().encode())
    return k, report


def _good_rows(
    part: SourcePart, report: VerifyReport, pixels: PixelOptions, stride: int, num_classes: int
) -> Iterator[Row]:
    """Yield the good rows as they will be stored; record counts, measurements and quarantined rows in `report`."""
    for position, row in enumerate(tallied_rows(part, report.tally)):
        try:
            _check_label(row.label, num_classes)
            picture = read_picture(row.data, pixels)
        except Exception as error:  # a bad image, or one too large for the memory, must not affect the others
            report.tally.quarantined.append(Quarantined(path=row.where, reason=first_line(error)))
            continue
        _measure(picture.image, report, sample=position % stride == 0)
        report.labels[row.label] += 1
        if not picture.as_stored:
            report.rewritten += 1
            row = row._replace(data=png(picture.image))
        yield row


def _check_label(label: int, num_classes: int) -> None:
    if not -1 <= label < (num_classes or 2**63):
        raise ValueError(
            f"label {label} is outside -1..{(num_classes or 2**63) - 1}, where -1 means unknown; correct it"
        )


def _measure(image: Image.Image, report: VerifyReport, *, sample: bool) -> None:
    report.images += 1
    report.widths = _widen(report.widths, image.width)
    report.heights = _widen(report.heights, image.height)
    if sample or not report.moments.images:  # at least one per part, even if all at the stride are quarantined
        report.moments = report.moments.merged(Moments.of(image))


def _widen(span: tuple[int, int] | None, value: int) -> tuple[int, int]:
    return (min(span[0], value), max(span[1], value)) if span else (value, value)


def _row_groups(rows: Iterable[Row], rows_per_group: int) -> Iterator[list[Row]]:
    """Cut rows into row groups, bounded in rows and in bytes."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.data)
        if len(group) == rows_per_group or size >= HELD_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _record_batch(rows: list[Row]) -> pa.RecordBatch:
    data = pa.array([row.data for row in rows], pa.binary())
    paths = pa.array([row.path.encode("utf-8", "backslashreplace").decode() for row in rows], pa.string())
    images = pa.StructArray.from_arrays([data, paths], fields=list(IMAGE_TYPE))
    return pa.record_batch([images, pa.array([row.label for row in rows], pa.int64())], schema=PART_SCHEMA)


def statistics(reports: list[VerifyReport]) -> ImageStatistics:
    """The statistics of all parts together."""
    moments = reduce(Moments.merged, (report.moments for report in reports))
    widths = [width for report in reports for width in report.widths or ()]
    heights = [height for report in reports for height in report.heights or ()]
    return ImageStatistics(
        mean=tuple(level / 255 for level in moments.mean),
        std=tuple(level / 255 for level in moments.deviation),
        sampled=moments.images,
        min_width=min(widths),
        max_width=max(widths),
        min_height=min(heights),
        max_height=max(heights),
    )
