"""Ingest: any source of images -> verified Parquet shards with a dense index, and their manifest.

There are two passes. The first (`verify`) decodes every image and writes the good ones below ``<out>/_ingest``, part by
part, so that a killed ingest resumes where it stopped. The second (`assemble`) mixes the parts into shards. The lists
of what was quarantined and left out and the summary are written too, and the manifest last. The shards are the same
byte for byte, however many tasks there are and in whatever order they finish.

Tasks run on Ray when it is initialised, otherwise one after the other in this process. On a Ray cluster of
several machines both source and `out` must be reachable from all of them. One ingest per folder at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pyarrow import fs as pafs

from pipeline.data.assemble import row_group_length, write_labels, write_shards
from pipeline.data.class_lists import ClassList
from pipeline.data.counts import check_counts
from pipeline.data.pixel_options import AS_THEY_ARE, PixelOptions
from pipeline.data.shards import (
    LEFT_OUT,
    MANIFEST,
    QUARANTINE,
    QUARANTINE_CAP,
    SUMMARY,
    WORK_FOLDER,
    LeftOut,
    Manifest,
    Quarantined,
    SourceInfo,
    read_manifest,
)
from pipeline.data.sources import Columns, Source, open_source
from pipeline.data.sources.base import refuse_overlap
from pipeline.data.sources.listing import is_of_system
from pipeline.data.sources.selection import some_of
from pipeline.data.tally import add_up, collect_entries, content_digest, read_content_digest
from pipeline.data.value_range import measure_range
from pipeline.data.verify import OnProgress, VerifyReport, statistics, verify_parts
from pipeline.errors import DataError
from pipeline.lease import LEASE, hold
from pipeline.provenance import version_of
from pipeline.storage import Folder, absolute, check_readable, filesystem, join, probe, remedy_for, write_atomically

INGEST_VERSION = 4  # part of the identity of unfinished work: raise it when parts are written differently
REASONS = 20  # in the summary, the most frequent ones
PACKAGES = ("digpro-ray", "ray", "pyarrow", "torchvision", "pillow", "tifffile", "imagecodecs")
RANGE = "range.json"  # in the work folder: the options with the measured range


def ingest(
    source: str,
    out: str,
    *,
    pixels: PixelOptions = AS_THEY_ARE,
    rows_per_shard: int = 5000,
    image_column: str | None = None,
    label_column: str | None = None,
    classes: ClassList | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Turn `source` into shards in the folder `out`; resume where an earlier, killed call stopped.

    The rows are stored in a fixed random order, so every shard is a mixture, whatever the order of the source.

    Parameters
    ----------
    source : str
        See `pipeline.data.sources`.
    out : str
        Local folder or filesystem URI. When it already holds this very source, its manifest is returned as it is.
    pixels : PixelOptions
        How to read the pixel values of the source's files where the files do not say it.
    rows_per_shard : int
        Images in a shard; the last one may have fewer.
    image_column, label_column : str, optional
        Columns of Parquet files; detected when absent.
    classes : ClassList, optional
        Ingest only these classes. Numbers of images that differ from the list's are recorded in the manifest and in
        ``summary.json``; see `pipeline.data.counts.check_counts`.
    on_progress : callable, optional
        Called with (parts done, parts in all, images so far) at the start and after each verified part.

    Raises
    ------
    DataError
        If the source is unusable, `out` is not writable or holds something else, or no image can be read.
    ConfigError
        If another command is ingesting into `out`.
    """
    if rows_per_shard < 1:
        raise DataError(f"rows_per_shard is {rows_per_shard}; give 1 or more")
    check_readable(out, "FOLDER")
    started = time.monotonic()
    opened = open_source(source, rows_per_shard, Columns(image_column, label_column), classes)
    fs, root = filesystem(out)
    refuse_overlap(opened, fs, root, out)
    if manifest := _read_finished(opened, pixels, fs, root, out):
        with contextlib.suppress(OSError):  # left by a command that was killed at its end
            fs.delete_dir(f"{root}/{WORK_FOLDER}")
        return _count_again(manifest, classes, out)
    _check_writable(fs, root, out)
    with hold(Folder(absolute(out)), "choose another folder"):
        if manifest := _read_finished(opened, pixels, fs, root, out):  # by a command that has just ended
            return _count_again(manifest, classes, out)
        return _write_all(opened, pixels, out, rows_per_shard, classes, on_progress, started)


def _write_all(
    source: Source,
    pixels: PixelOptions,
    out: str,
    rows_per_shard: int,
    classes: ClassList | None,
    on_progress: OnProgress | None,
    started: float,
) -> Manifest:
    """Verify the parts that are left, write shards, lists and summary and, last of all, the manifest."""
    fs, root = filesystem(out)
    work = _open_work(source, pixels, fs, root, out, rows_per_shard)
    pixels = _with_range(source, pixels, fs, work, rows_per_shard)
    rows_per_group = row_group_length(rows_per_shard)
    reports, labels = verify_parts(source, pixels, out, work, rows_per_shard, rows_per_group, on_progress)
    quarantined, left_out = _write_lists(source, reports, out)
    manifest = _assemble(source, pixels, reports, labels, quarantined, left_out, out, work, rows_per_shard)
    manifest = _with_list(manifest, classes)
    _write_summary(manifest, reports, quarantined, left_out, out, time.monotonic() - started)
    manifest.write(out)
    fs.delete_dir(f"{root}/{WORK_FOLDER}")
    return manifest


def _read_finished(source: Source, pixels: PixelOptions, fs: pafs.FileSystem, root: str, out: str) -> Manifest | None:
    """The manifest of a finished ingest of `source`; an error when `out` belongs to something else."""
    entries = _entries(fs, root, out)
    if MANIFEST in entries:
        manifest = read_manifest(out)
        if manifest.source.stamp != source.stamp:
            manifest = _compare_content(source, manifest, out)
        if manifest.pixels.requested != pixels:
            raise DataError(
                f"{out} holds the images of {source.name!r} read with {manifest.pixels}, but this command asks for "
                f"{pixels}; choose another folder, or delete this one"
            )
        return manifest
    others = [name for name in entries if not is_of_system(name) and name != LEASE]
    if others and WORK_FOLDER not in entries:
        raise DataError(f"{out} holds other files ({others[0]!r}, ...); choose an empty or a new folder")
    return None


def _compare_content(source: Source, manifest: Manifest, out: str) -> Manifest:
    """The manifest with the source's new stamp, if only times differ, as after a download or a `git clone`."""
    found = manifest.source
    remedy = "choose another folder, or delete this one"
    if other := set(source.class_names) ^ set(manifest.class_names):  # known without reading the source
        before = _classes(manifest.class_names, found.classes, found.source)
        now = _classes(source.class_names, source.classes, source.name)
        raise DataError(
            f"{out} holds {before}, but this command asks for {now}; they differ in {some_of(other)}; {remedy}"
        )
    if not found.stamp:
        raise DataError(
            f"{out} holds the images of {found.source!r}, ingested by an earlier version that stored no digest of "
            f"their content, so they cannot be compared with {source.name!r}; {remedy}"
        )
    if read_content_digest(source, manifest.pixels) != found.digest:
        raise DataError(
            f"{out} holds the images of {found.source!r}, but {source.name!r} is a different source or its content "
            f"has changed since; {remedy}"
        )
    manifest = manifest.model_copy(update={"source": found.model_copy(update={"stamp": source.stamp})})
    with contextlib.suppress(OSError):  # a read-only folder keeps the old stamp, and is compared again next time
        manifest.write(out)
    return manifest


def _classes(names: Sequence[str], list_name: str, source: str) -> str:
    which = f"the {len(names):,} classes on the list {list_name}" if list_name else f"all {len(names):,} classes"
    return f"{which} of {source!r}"


def _entries(fs: pafs.FileSystem, root: str, out: str) -> list[str]:
    with _write_errors(out, "choose a folder that you can list and write to"):
        return sorted(info.base_name for info in fs.get_file_info(pafs.FileSelector(root, allow_not_found=True)))


def _check_writable(fs: pafs.FileSystem, root: str, out: str) -> None:
    work = f"{root}/{WORK_FOLDER}"
    with _write_errors(out):
        fs.create_dir(work)
        probe(fs, work)


@contextlib.contextmanager
def _write_errors(out: str, remedy: str = "choose a folder that you can write to") -> Iterator[None]:
    """Turn errors in writing to `out`, inside the block, into a DataError that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error}; {remedy_for(error, remedy)}") from error


def _open_work(
    source: Source, pixels: PixelOptions, fs: pafs.FileSystem, root: str, out: str, rows_per_shard: int
) -> str:
    """Create the work folder of this source, shard size and options, and delete others."""
    identity = hashlib.sha256(f"{source.stamp} {pixels.model_dump_json()}".encode()).hexdigest()
    key = f"v{INGEST_VERSION}-{rows_per_shard}-{identity[:16]}"
    work = f"{root}/{WORK_FOLDER}/{key}"
    with _write_errors(out):
        fs.create_dir(work)
        for info in fs.get_file_info(pafs.FileSelector(f"{root}/{WORK_FOLDER}")):
            if info.base_name != key:
                fs.delete_dir(info.path)
    return work


def _with_range(
    source: Source, pixels: PixelOptions, fs: pafs.FileSystem, work: str, rows_per_shard: int
) -> PixelOptions:
    """The options, with a percentile range measured now or taken from the work of a killed ingest."""
    if pixels.range != "percentile":
        return pixels
    path = f"{work}/{RANGE}"
    if fs.get_file_info(path).type == pafs.FileType.File:
        with fs.open_input_file(path) as file:
            return PixelOptions.model_validate_json(file.read())
    measured = pixels.model_copy(update={"measured": measure_range(source, pixels, rows_per_shard)})
    write_atomically(fs, path, measured.model_dump_json().encode())
    return measured


def _write_lists(source: Source, reports: list[VerifyReport], out: str) -> tuple[list[Quarantined], list[LeftOut]]:
    """Write the lists of what was quarantined and what was left out, sorted by path, and return them."""
    fs, root = filesystem(out)
    quarantined, left_out = collect_entries(source, [report.tally for report in reports])
    for name, entries in ((QUARANTINE, quarantined), (LEFT_OUT, left_out)):
        lines = "".join(f"{entry.model_dump_json()}\n" for entry in entries)
        write_atomically(fs, f"{root}/{name}", lines.encode())
    return quarantined, left_out


def _assemble(
    source: Source,
    pixels: PixelOptions,
    reports: list[VerifyReport],
    labels: Counter[int],
    quarantined: list[Quarantined],
    left_out: list[LeftOut],
    out: str,
    work: str,
    rows_per_shard: int,
) -> Manifest:
    """Write the shards and the file of their labels; return the manifest that declares them complete."""
    tallies = [report.tally for report in reports]
    tally = add_up(source, tallies, sum(report.images for report in reports), quarantined, left_out)
    if tally.images == 0:
        raise DataError(f"{source.name!r} has no readable image ({tally}); {_first(quarantined, left_out, out)}")
    shards = write_shards(reports, out, work, rows_per_shard, source.class_names)
    if labelled := any(label >= 0 for label in labels):
        write_labels(len(shards), out, work)
    digest = content_digest(source, pixels, tallies)
    return Manifest(
        num_images=sum(shard.rows for shard in shards),
        class_names=list(source.class_names),
        class_counts=[labels[label] for label in range(len(source.class_names))],
        labelled=labelled,
        statistics=statistics(reports),
        source=SourceInfo(
            source=source.name, kind=source.kind, digest=digest, stamp=source.stamp, classes=source.classes
        ),
        pixels=pixels,
        shards=shards,
        balance=tally,
        quarantined_count=tally.quarantined,
        quarantined=quarantined[:QUARANTINE_CAP],
    )


def _first(quarantined: list[Quarantined], left_out: list[LeftOut], out: str) -> str:
    """Where the reasons are listed, and the first of them."""
    if quarantined:
        return f"see {join(out, QUARANTINE)}, which starts with {quarantined[0].path}: {quarantined[0].reason}"
    first = f", which starts with {left_out[0].path}: {left_out[0].rule}" if left_out else ""
    return f"see {join(out, LEFT_OUT)}{first}"


def _write_summary(
    manifest: Manifest,
    reports: list[VerifyReport],
    quarantined: list[Quarantined],
    left_out: list[LeftOut],
    out: str,
    seconds: float,
) -> None:
    """Write ``summary.json``: what was done, in numbers, and where it is. `seconds` are those of the last call."""
    fs, root = filesystem(out)
    tally = manifest.balance
    assert tally is not None  # None in manifests of earlier versions only
    outputs = {"manifest": MANIFEST, "quarantine": QUARANTINE, "left_out": LEFT_OUT}
    summary: dict[str, Any] = {
        "source": manifest.source.model_dump(),
        "images": manifest.num_images,
        "rewritten_as_png": sum(report.rewritten for report in reports),
        "pixels": manifest.pixels.model_dump(),
        "shards": len(manifest.shards),
        "classes": len(manifest.class_names),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "balance": tally.model_dump(),
        "counts": manifest.counts.model_dump() if manifest.counts else None,
        "quarantined": {
            "images": tally.quarantined,
            "reasons": _most_common((re.sub(r"\d+", "N", entry.reason), entry.rows) for entry in quarantined),
        },
        "left_out": {
            "files": tally.left_out,
            "rules": _most_common((entry.rule.partition(":")[0], entry.files) for entry in left_out),
        },
        "seconds": round(seconds, 3),
        "versions": {name: version_of(name) for name in PACKAGES},
        "outputs": {name: join(absolute(out), file) for name, file in outputs.items()},
    }
    write_atomically(fs, f"{root}/{SUMMARY}", json.dumps(summary, indent=1).encode())


def _with_list(manifest: Manifest, classes: ClassList | None) -> Manifest:
    """The manifest; with a list, it gets the check of its numbers of images and the titles of its classes."""
    if classes is None:
        return manifest
    counts = check_counts(classes, manifest.images_of_classes, manifest.num_images)
    titles = {name: title for name, title in classes.titles.items() if name in manifest.class_names}
    return manifest.model_copy(update={"counts": counts, "class_titles": titles})


def _count_again(manifest: Manifest, classes: ClassList | None, out: str) -> Manifest:
    """The manifest of a finished ingest, checked against the list as it is now."""
    checked = _with_list(manifest, classes)
    if checked.counts and checked != manifest:
        with contextlib.suppress(OSError):  # a read-only folder keeps the earlier check
            Folder(absolute(out)).update(SUMMARY, counts=checked.counts.model_dump())
            checked.write(out)
    return checked


def _most_common(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The most frequent reasons and their counts; reasons that differ only in numbers or names count as one."""
    total: Counter[str] = Counter()
    for reason, count in counts:
        total[reason] += count
    return dict(total.most_common(REASONS))
