"""The images to assign, in parts that any process can read: from shards, or from a source that was never ingested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from pipeline.data.pixel_options import PixelOptions
from pipeline.data.pixels import stored_bytes
from pipeline.data.read import read_shard_rows
from pipeline.data.shards import LeftOut, Manifest, Quarantined, Shard
from pipeline.data.sources import Row, Source, SourcePart
from pipeline.errors import first_line

LEAST_PARTS = 64  # at least, so that a kill loses little and all actors have work to the end
PART_IMAGES = range(32, 8193)
SOURCE_PART_IMAGES = 512


@dataclass(frozen=True)
class EncodedImage:
    """An image as the shards have it, or as an ingest would store it; only images in shards have an index."""

    data: bytes
    path: str
    label: int
    index: int | None


ImagePart = Callable[[], Iterator[EncodedImage | Quarantined | LeftOut]]
"""Reads a part of the images: picklable, always in the same order."""


@dataclass(frozen=True)
class ImageParts:
    """Images to be assigned; each part becomes a part of the output.

    Attributes
    ----------
    name : str
        Of the source, for display.
    stamp : str
        Changes when the source does.
    parts : tuple of ImagePart
    total : int or None
        Images, or files that may be images; None where that is known only when all are read.
    class_names : tuple of str
    quarantined, left_out : tuple
        What was found while the source was listed.
    """

    name: str
    stamp: str
    parts: tuple[ImagePart, ...]
    total: int | None
    class_names: tuple[str, ...]
    quarantined: tuple[Quarantined, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def shard_parts(folder: str, manifest: Manifest) -> ImageParts:
    """The images of a folder of shards."""
    rows = min(PART_IMAGES[-1], max(PART_IMAGES[0], manifest.num_images // LEAST_PARTS))
    parts = [
        partial(_shard_rows, folder, shard, start, min(start + rows, shard.first_index + shard.rows))
        for shard in manifest.shards
        for start in range(shard.first_index, shard.first_index + shard.rows, rows)
    ]
    return ImageParts(folder, manifest.digest, tuple(parts), manifest.num_images, tuple(manifest.class_names))


def source_parts(source: Source, pixels: PixelOptions) -> ImageParts:
    """The images of a source, read as an ingest with these options would read them."""
    parts = tuple(partial(_raw_rows, part, pixels) for part in source.parts)
    total = None if source.kind == "webdataset" else source.seen - sum(entry.files for entry in source.left_out)
    return ImageParts(source.name, source.stamp, parts, total, source.class_names, source.quarantined, source.left_out)


def _shard_rows(folder: str, shard: Shard, start: int, stop: int) -> Iterator[EncodedImage]:
    for table in read_shard_rows(folder, shard, start, stop, ["image", "label", "index"]):
        for row in table.to_pylist():
            yield EncodedImage(row["image"]["bytes"], row["image"]["path"] or "", row["label"], row["index"])


def _raw_rows(part: SourcePart, pixels: PixelOptions) -> Iterator[EncodedImage | Quarantined | LeftOut]:
    for entry in part():
        if isinstance(entry, Row):
            yield _as_ingested(entry, pixels)
        elif isinstance(entry, (Quarantined, LeftOut)):
            yield entry


def _as_ingested(row: Row, pixels: PixelOptions) -> EncodedImage | Quarantined:
    """The image with the bytes that an ingest would store."""
    try:
        return EncodedImage(stored_bytes(row.data, pixels), row.path, row.label, None)
    except Exception as error:  # decoders may raise anything on bad bytes
        return Quarantined(path=row.where, reason=first_line(error))
