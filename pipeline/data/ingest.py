"""Ingest: any source of images -> verified Parquet shards with a dense index, and their manifest.

Two passes. The first (`verify`) decodes every image and writes what is good below ``<out>/_ingest``, part by part, so
a killed ingest goes on where it was. The second (`assemble`) mixes the parts into shards. Then come quarantine list
and summary, and the manifest last. Neither the order in which tasks end nor their number changes a byte of the shards.

Tasks run on Ray when it is initialised, otherwise one after the other in this process. On a Ray cluster of
several machines both source and `out` must be reachable from all of them. One ingest per folder at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from importlib import metadata
from typing import Any

from pyarrow import fs as pafs

from pipeline.data.assemble import rows_per_piece, write_shards
from pipeline.data.pixel_options import AS_THEY_ARE, PixelOptions
from pipeline.data.shards import (
    MANIFEST,
    QUARANTINE,
    QUARANTINE_CAP,
    SUMMARY,
    WORK_FOLDER,
    Manifest,
    Quarantined,
    SourceInfo,
    read_manifest,
)
from pipeline.data.sources import Source, open_source
from pipeline.data.value_range import measure_range
from pipeline.data.verify import PartReport, Progress, statistics, verify_parts
from pipeline.errors import DataError
from pipeline.storage import absolute, filesystem, write_atomically

INGEST_VERSION = 3  # part of the identity of unfinished work: raise it when parts are written differently
REASONS = 20  # of the most frequent in the summary
PACKAGES = ("digpro-ray", "ray", "pyarrow", "torchvision", "pillow", "tifffile", "imagecodecs")
RANGE = "range.json"  # in the work folder: the options with the range that was measured


def ingest(
    source: str,
    out: str,
    *,
    pixels: PixelOptions = AS_THEY_ARE,
    rows_per_shard: int = 5000,
    on_progress: Progress | None = None,
) -> Manifest:
    """Turn `source` into shards in the folder `out`; go on where an earlier, killed call stopped.

    The rows lie in a fixed random order, so that every shard is a mixture whatever the order of the source was.

    Parameters
    ----------
    source : str
        See `pipeline.data.sources`.
    out : str
        Local folder or filesystem URI. When it already holds this very source, its manifest is returned as it is.
    pixels : PixelOptions
        What the numbers of the source's files mean, where the files do not say it.
    rows_per_shard : int
        Images in a shard; the last one may have fewer.
    on_progress : callable, optional
        Called with (parts done, parts in all, images so far) at the start and after each verified part.

    Raises
    ------
    DataError
        For an unusable source, an `out` that is not writable or holds something else, or no readable image.
    """
    if rows_per_shard < 1:
        raise DataError(f"rows_per_shard is {rows_per_shard}; give 1 or more")
    started = time.monotonic()
    opened = open_source(source, rows_per_shard)
    fs, root = filesystem(out)
    manifest = _already_there(opened, pixels, fs, root, out)
    if manifest is None:
        work = _open_work(opened, pixels, fs, root, out, rows_per_shard)
        pixels = _with_range(opened, pixels, fs, work, rows_per_shard)
        reports = verify_parts(opened, pixels, out, work, rows_per_shard, rows_per_piece(rows_per_shard), on_progress)
        quarantined = _quarantine(opened, reports, out)
        manifest = _assemble(opened, pixels, reports, quarantined, out, work, rows_per_shard)
        _write_summary(manifest, reports, quarantined, out, time.monotonic() - started)
        manifest.write(out)
    if fs.get_file_info(f"{root}/{WORK_FOLDER}").type == pafs.FileType.Directory:
        fs.delete_dir(f"{root}/{WORK_FOLDER}")
    return manifest


def _already_there(source: Source, pixels: PixelOptions, fs: pafs.FileSystem, root: str, out: str) -> Manifest | None:
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
        if manifest.pixels.requested != pixels:
            raise DataError(
                f"{out} holds the images of {source.name!r} read with {manifest.pixels}, and now they are to be read "
                f"with {pixels}; choose another folder, or delete this one"
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


def _open_work(
    source: Source, pixels: PixelOptions, fs: pafs.FileSystem, root: str, out: str, rows_per_shard: int
) -> str:
    """Create the work folder of this source, shard size and options, prove it writable, drop those of others."""
    identity = hashlib.sha256(f"{source.digest} {pixels.model_dump_json()}".encode()).hexdigest()
    key = f"v{INGEST_VERSION}-{rows_per_shard}-{identity[:16]}"
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


def _with_range(
    source: Source, pixels: PixelOptions, fs: pafs.FileSystem, work: str, rows_per_shard: int
) -> PixelOptions:
    """The options, with the range measured where it is asked for, or found in the work of a killed ingest."""
    if pixels.range != "percentile":
        return pixels
    path = f"{work}/{RANGE}"
    if fs.get_file_info(path).type == pafs.FileType.File:
        with fs.open_input_file(path) as file:
            return PixelOptions.model_validate_json(file.read())
    measured = pixels.model_copy(update={"measured": measure_range(source, pixels, rows_per_shard)})
    write_atomically(fs, path, measured.model_dump_json().encode())
    return measured


def _quarantine(source: Source, reports: list[PartReport], out: str) -> list[Quarantined]:
    """Write the list of all that was lost, by path, and return it."""
    fs, root = filesystem(out)
    found = [*source.quarantined, *(entry for report in reports for entry in report.quarantined)]
    found.sort(key=lambda entry: entry.path)
    lines = "".join(f"{entry.model_dump_json()}\n" for entry in found)
    write_atomically(fs, f"{root}/{QUARANTINE}", lines.encode())
    return found


def _assemble(
    source: Source,
    pixels: PixelOptions,
    reports: list[PartReport],
    quarantined: list[Quarantined],
    out: str,
    work: str,
    rows_per_shard: int,
) -> Manifest:
    """Write the shards; return the manifest that declares them complete."""
    if not any(report.images for report in reports):
        first = f"{quarantined[0].path}: {quarantined[0].reason}"
        raise DataError(f"{source.name!r} has no readable image; see {out}/{QUARANTINE}, which starts with {first}")
    shards = write_shards(reports, out, work, rows_per_shard, source.class_names)
    return Manifest(
        num_images=sum(shard.rows for shard in shards),
        class_names=list(source.class_names),
        statistics=statistics(reports),
        source=SourceInfo(source=source.name, kind=source.kind, digest=source.digest),
        pixels=pixels,
        shards=shards,
        quarantined_count=sum(entry.rows for entry in quarantined),
        quarantined=quarantined[:QUARANTINE_CAP],
    )


def _write_summary(
    manifest: Manifest, reports: list[PartReport], quarantined: list[Quarantined], out: str, seconds: float
) -> None:
    """Write ``summary.json``: what was done, in numbers, and where it lies. `seconds` are those of the last call."""
    fs, root = filesystem(out)
    folder = absolute(out).rstrip("/")
    summary: dict[str, Any] = {
        "source": manifest.source.model_dump(),
        "images": manifest.num_images,
        "rewritten_as_png": sum(report.rewritten for report in reports),
        "pixels": manifest.pixels.model_dump(),
        "shards": len(manifest.shards),
        "classes": len(manifest.class_names),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "quarantined": {"images": manifest.quarantined_count, "reasons": _count_reasons(quarantined)},
        "seconds": round(seconds, 3),
        "versions": {name: _version(name) for name in PACKAGES},
        "outputs": {"manifest": f"{folder}/{MANIFEST}", "quarantine": f"{folder}/{QUARANTINE}"},
    }
    write_atomically(fs, f"{root}/{SUMMARY}", json.dumps(summary, indent=1).encode())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # our own, where the code runs from a copied folder
        return "not installed"


def _count_reasons(quarantined: list[Quarantined]) -> dict[str, int]:
    """Images lost for each of the most frequent reasons, whose numbers are written N, so that like meets like."""
    counts: Counter[str] = Counter()
    for entry in quarantined:
        counts[re.sub(r"\d+", "N", entry.reason)] += entry.rows
    return dict(counts.most_common(REASONS))
