"""The shard contract: Parquet files in the Hugging Face image layout, and the manifest beside them.

A data set is a folder (local, or any pyarrow filesystem URI) of ``shard-*.parquet`` files, one file of their labels
if images have classes, and one ``manifest.json``. The manifest is written last, so a folder that has one is complete.
The rows are in a random order, fixed at ingest, so any run of them is a fair sample; ``index`` numbers them in that
order.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.data.counts import CountCheck
from pipeline.data.footers import column_statistics, is_range, row_group_rows
from pipeline.data.pixel_options import AS_THEY_ARE, PixelOptions
from pipeline.errors import DataError
from pipeline.storage import Place, filesystem, join, raise_storage_fault, remedy_for, write_atomically

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
LABELS = "labels.pqt"  # Parquet, but its suffix keeps programs that read all *.parquet from taking it for a shard
QUARANTINE = "quarantine.jsonl"
LEFT_OUT = "left_out.jsonl"
SUMMARY = "summary.json"
WORK_FOLDER = "_ingest"  # unfinished ingests keep their parts here
REINGEST = "delete the folder and ingest the source again"  # the remedy for damaged shards
QUARANTINE_CAP = 100  # entries repeated in the manifest; the file named by QUARANTINE has them all

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS = {"image": IMAGE_TYPE, "label": pa.int64(), "index": pa.int64()}
LABELS_SCHEMA = pa.schema([("label", pa.int64())])

ROW_GROUP_ROWS = 256
ROW_GROUP_BYTES = 8 << 20  # a row group is the smallest unit that a reader reads: a few megabytes, in one place
# Encoded images neither compress nor repeat; checksums let a reader tell a flipped bit from a bad picture.
WRITE_OPTIONS: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": ["label", "index"],
    "write_page_checksum": True,
}


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Record):
    """One Parquet file: ``rows`` images with the indices ``first_index .. first_index + rows - 1``."""

    file: str
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1, description="size of the file")
    first_index: int = Field(ge=0)
    groups: tuple[int, ...] = Field(
        default=(), description="rows of each row group of the file; empty in manifests of earlier versions"
    )

    @model_validator(mode="after")
    def _groups_sum_to_rows(self) -> Shard:
        if self.groups and (min(self.groups) < 1 or sum(self.groups) != self.rows):
            raise ValueError(f"{self.file} has {self.rows} rows, but its row groups have {sum(self.groups)}")
        return self


class Quarantined(_Record):
    """Something in the source that could not be ingested, although it is or may be an image."""

    path: str = Field(description="where it stood in the source")
    reason: str
    rows: int = Field(default=1, ge=0, description="images known to be lost with it; 0 where damage may hide some")


class LeftOut(_Record):
    """Something in the source that is not an image, or that a rule excludes; no image is lost with it."""

    path: str = Field(description="where it stands in the source; `x.tar: *.cls` for members that a tar has many of")
    rule: str = Field(description="the rule; what follows a colon differs from file to file")
    files: int = Field(default=1, ge=1)


class Tally(_Record):
    """What became of everything that an ingest saw: seen = images + quarantined + left_out."""

    unit: str = Field(description="what is counted: files, rows, members of tars")
    seen: int
    images: int
    quarantined: int
    left_out: int
    damaged: int = Field(default=0, description="entries of quarantine.jsonl after which more images may be missing")

    def __str__(self) -> str:
        line = (
            f"{self.seen:,} {self.unit} seen = {self.images:,} images + {self.quarantined:,} quarantined "
            f"+ {self.left_out:,} left out by rule"
        )
        return f"{line}; damaged files that may hold more images: {self.damaged:,}" if self.damaged else line


class ImageStatistics(_Record):
    """Pixel statistics in 0..1 (RGB) over ``sampled`` images, equally weighted; sizes over all images."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sampled: int = Field(ge=1)
    min_width: int = Field(ge=1)
    max_width: int = Field(ge=1)
    min_height: int = Field(ge=1)
    max_height: int = Field(ge=1)

    @property
    def common_size(self) -> tuple[int, int] | None:
        """(width, height) when every image has the same, else None."""
        same = self.min_width == self.max_width and self.min_height == self.max_height
        return (self.min_width, self.min_height) if same else None


class SourceInfo(_Record):
    """What was ingested.

    ``digest`` changes with the content: images, how they are read, names, labels, classes. It does not depend on where
    the source is, when it was copied, or how it was cut into parts. ``stamp`` also changes with the names, sizes and
    times of the source's files: while it is the same, the digest is known without reading the source.
    """

    source: str
    kind: str
    digest: str
    stamp: str = Field(default="", description="empty in manifests whose digest was made of names, sizes and times")
    classes: str = Field(default="", description="the list of the classes that were taken; empty where all were")


class Manifest(_Record):
    """All that readers need to know about a data set without opening its shards."""

    schema_version: Literal[1] = SCHEMA_VERSION
    num_images: int = Field(ge=0)
    class_names: list[str] = Field(description="empty when the source names no classes")
    class_titles: dict[str, str] = Field(
        default={}, description="what pictures and pages call a class, where a list of classes says it"
    )
    class_counts: list[int] | None = Field(
        default=None, description="images of each class; None in manifests of earlier versions"
    )
    labelled: bool | None = Field(
        default=None,
        description=f"whether any image has a class; {LABELS} lies beside if so. None in manifests of earlier versions",
    )
    counts: CountCheck | None = Field(
        default=None, description="the check of these numbers against a list of classes; None without a list"
    )
    statistics: ImageStatistics
    source: SourceInfo
    pixels: PixelOptions = Field(AS_THEY_ARE, description="how the source's files were turned into pixels")
    shards: list[Shard]
    balance: Tally | None = Field(default=None, description="None in manifests of earlier versions")
    quarantined_count: int = Field(ge=0, description="images lost, summed over all of quarantine.jsonl")
    quarantined: list[Quarantined] = Field(description=f"the first {QUARANTINE_CAP} entries of quarantine.jsonl")

    @property
    def digest(self) -> str:
        """Changes with the content of the source, and when the same images are in other shards: their index changes."""
        shards = [(shard.rows, shard.bytes) for shard in self.shards]
        return hashlib.sha256(json.dumps([self.source.digest, shards]).encode()).hexdigest()

    @property
    def class_captions(self) -> list[str]:
        """The title of each class, or else its name."""
        return [self.class_titles.get(name, name) for name in self.class_names]

    @property
    def images_of_classes(self) -> dict[str, int] | None:
        """The number of images of each class by its name; None where it is not known."""
        if self.class_counts is None:
            return None
        return dict(zip(self.class_names, self.class_counts, strict=True))

    @property
    def count_warning(self) -> str:
        """How the numbers of images differ from those of the list of classes, in one line; empty where they agree."""
        return self.counts.warning if self.counts else ""

    def write(self, folder: str) -> None:
        """Write ``manifest.json`` into `folder` atomically; each shard takes one line."""
        fs, root = filesystem(folder)
        head = self.model_dump_json(indent=1, exclude={"shards"}).removesuffix("\n}")
        shards = ",\n  ".join(shard.model_dump_json() for shard in self.shards)
        write_atomically(fs, f"{root}/{MANIFEST}", f'{head},\n "shards": [\n  {shards}\n ]\n}}'.encode())


def shard_schema(class_names: Sequence[str]) -> pa.Schema:
    """The schema of a shard, with the metadata that Hugging Face ``datasets`` needs to decode it."""
    label = {"_type": "ClassLabel", "names": list(class_names)} if class_names else {"_type": "Value", "dtype": "int64"}
    features = {"image": {"_type": "Image"}, "label": label, "index": {"_type": "Value", "dtype": "int64"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(list(COLUMNS.items()), metadata=metadata)


def has_manifest(folder: str) -> bool:
    """Whether a folder holds a complete data set."""
    files, root = filesystem(folder)
    return bool(files.get_file_info(f"{root}/{MANIFEST}").is_file)


def read_manifest(folder: str) -> Manifest:
    """Read the manifest of `folder`.

    Raises
    ------
    DataError
        When it is missing (never ingested, or interrupted), unreadable, damaged or of another schema version.
    """
    fs, root = filesystem(folder)
    try:
        with fs.open_input_file(f"{root}/{MANIFEST}") as file:
            raw = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(_why_no_manifest(fs, root, folder)) from None
    except OSError as error:
        remedy = remedy_for(error, "make it readable")
        raise DataError(f"cannot read {join(folder, MANIFEST)}: {error}; {remedy}") from error
    return _parse_manifest(raw, folder)


def _why_no_manifest(fs: pafs.FileSystem, root: str, folder: str) -> str:
    if fs.get_file_info(f"{root}/{WORK_FOLDER}").type == pafs.FileType.Directory:
        return f"{folder} holds an unfinished ingest; run the same `digpro ingest` again to resume it"
    if fs.get_file_info(root).type == pafs.FileType.File:
        shards = _beside(folder, posixpath.splitext(Place.parse(folder).name)[0])
        what = f"{folder} is a file, not a folder of shards"
    elif fs.get_file_info(pafs.FileSelector(root, allow_not_found=True)):
        shards = _beside(folder, Place.parse(folder).name)
        what = f"{folder} holds files but no {MANIFEST}; images must be ingested before they are used"
    else:
        return f"{folder} holds no {MANIFEST}; fill it with `digpro ingest SOURCE {shlex.quote(folder)}`"
    return f"{what}: run `digpro ingest {shlex.quote(str(Place.parse(folder)))} {shards}`, then set data.path={shards}"


def _beside(folder: str, name: str) -> str:
    """A folder for the shards of the source at `folder`, quoted for the command line."""
    return shlex.quote(str(Place.parse(folder).parent / f"{name}-shards"))


def _parse_manifest(raw: bytes, folder: str) -> Manifest:
    try:
        version = json.loads(raw)["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{join(folder, MANIFEST)} is damaged ({error!r}); {REINGEST}") from None
    if version != SCHEMA_VERSION:
        raise DataError(f"{join(folder, MANIFEST)} has schema version {version}, not {SCHEMA_VERSION}; {REINGEST}")
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise DataError(f"{join(folder, MANIFEST)} is damaged ({error}); {REINGEST}") from None


def validate_shards(folder: str) -> Manifest:
    """Check every shard of `folder` against its manifest: existence, columns, types, rows, indices, size; also labels.

    Reads footers, with the statistics in them. The index column of a row group is read only if these do not prove its
    indices, because the file is damaged or another program wrote it without statistics.

    Raises
    ------
    DataError
        Naming the first bad file and what is wrong with it.
    """
    manifest = read_manifest(folder)
    _check_totals(manifest, folder)
    fs, root = filesystem(folder)
    with ThreadPoolExecutor(8) as pool:  # remote footers are latency, not work
        problems = pool.map(lambda shard: _shard_problem(fs, f"{root}/{shard.file}", shard), manifest.shards)
        for shard, problem in zip(manifest.shards, problems, strict=True):
            if problem:
                raise DataError(f"{join(folder, shard.file)}: {problem}; {REINGEST}")
    if manifest.labelled:
        with open_labels(folder, manifest):  # which checks them
            pass
    return manifest


def _check_totals(manifest: Manifest, folder: str) -> None:
    if manifest.num_images == 0:
        raise DataError(f"{folder} holds no images; ingest a source that has some")
    expected, file = 0, join(folder, MANIFEST)
    for shard in manifest.shards:
        if shard.first_index != expected:
            raise DataError(f"{file}: {shard.file} starts at index {shard.first_index}, not {expected}; {REINGEST}")
        expected += shard.rows
    if expected != manifest.num_images:
        raise DataError(
            f"{file}: num_images is {manifest.num_images} but the shards have {expected} rows together; {REINGEST}"
        )


def _shard_problem(fs: pafs.FileSystem, path: str, shard: Shard) -> str | None:
    info = fs.get_file_info(path)
    if info.type != pafs.FileType.File:
        return "the shard is missing"
    try:
        with fs.open_input_file(path) as file:
            problem = _content_problem(pq.ParquetFile(file, page_checksum_verification=True), shard)
    except (pa.ArrowException, OSError) as error:
        raise_storage_fault(error)
        return f"unreadable, with {info.size} of {shard.bytes} bytes ({error})"
    if not problem and info.size != shard.bytes:
        return f"has {info.size} bytes but the manifest says {shard.bytes}"
    return problem


def _content_problem(file: pq.ParquetFile, shard: Shard) -> str | None:
    schema = file.schema_arrow
    for name, kind in COLUMNS.items():
        if name not in schema.names:
            return f"column {name!r} is missing among {schema.names}"
        if schema.field(name).type != kind:
            return f"column {name!r} is {schema.field(name).type}, not {kind}"
    if file.metadata.num_rows != shard.rows:
        return f"has {file.metadata.num_rows} rows but the manifest says {shard.rows}"
    return _index_problem(file, shard) or _groups_problem(file, shard)


def _groups_problem(file: pq.ParquetFile, shard: Shard) -> str | None:
    found = row_group_rows(file)
    if not shard.groups or found == shard.groups:
        return None
    return f"has {_first_difference(found, shard.groups)}"


def _first_difference(found: Sequence[int], expected: Sequence[int]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} row groups but the manifest says {len(expected)}"
    group = next(i for i, (rows, wanted) in enumerate(zip(found, expected, strict=True)) if rows != wanted)
    return f"{found[group]} rows in row group {group} but the manifest says {expected[group]}"


def _index_problem(file: pq.ParquetFile, shard: Shard) -> str | None:
    """The first wrong index; a row group is read only if its statistics do not prove that it has none."""
    row = 0
    for group, rows in enumerate(row_group_rows(file)):
        first = shard.first_index + row
        if not is_range(column_statistics(file, group, "index"), first, rows):
            index = file.read_row_group(group, columns=["index"]).column("index").to_pylist()
            for i, value in enumerate(index):
                if value != first + i:
                    return f"row {row + i} has index {value}, not {first + i}"
        row += rows
    return None


@contextmanager
def open_labels(folder: str, manifest: Manifest) -> Iterator[pq.ParquetFile]:
    """The file of labels of a data set whose manifest says that images have classes.

    Raises
    ------
    DataError
        When it is missing, damaged (found now or while it is read), or does not have a label for each image.
    """
    fs, root = filesystem(folder)
    try:
        with fs.open_input_file(f"{root}/{LABELS}") as handle:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            if not file.schema_arrow.equals(LABELS_SCHEMA):
                found = f"the columns {file.schema_arrow.names}, not ['label']"
                raise DataError(f"{join(folder, LABELS)} has {found}; {REINGEST}")
            if file.metadata.num_rows != manifest.num_images:
                found = f"{file.metadata.num_rows} rows but the manifest says {manifest.num_images}"
                raise DataError(f"{join(folder, LABELS)} has {found}; {REINGEST}")
            yield file
    except (OSError, pa.ArrowException) as error:
        remedy = remedy_for(error, REINGEST)
        raise DataError(f"{join(folder, LABELS)} cannot be read: {error}; {remedy}") from error
