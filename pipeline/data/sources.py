"""Sources of images: each lists itself cheaply, then yields its rows part by part.

A source string is ``digits``, ``imagefolder:PATH``, ``parquet:PATH``, ``webdataset:PATTERN``,
``torchvision:NAME:PATH``, or a plain path whose kind is detected.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from braceexpand import braceexpand
from PIL import Image
from pyarrow import fs as pafs

from pipeline.data.shards import WORK_FOLDER, DataError, Quarantined, filesystem

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
FOREIGN_SUFFIXES = (".bmp", ".gif", ".ppm", ".pgm", ".jp2", ".heic", ".avif")  # images, but not of the contract
SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test"}
UNKNOWN_LABEL = -1
TAR_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error)

_BOTH = [{"train": True}, {"train": False}]
_TRAIN_TEST = [{"split": "train"}, {"split": "test"}]
_TRAIN_VAL_TEST = [{"split": "train"}, {"split": "val"}, {"split": "test"}]
TORCHVISION: dict[str, list[dict[str, Any]]] = {  # data set -> the arguments of its splits, ingested as one set
    **dict.fromkeys(["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"], _BOTH),
    **dict.fromkeys(["STL10", "SVHN", "GTSRB", "Food101"], _TRAIN_TEST),
    **dict.fromkeys(["Flowers102", "DTD"], _TRAIN_VAL_TEST),
    "OxfordIIITPet": [{"split": "trainval"}, {"split": "test"}],
    "EuroSAT": [{}],
}


class Row(NamedTuple):
    """One encoded image as the source has it: unverified bytes, its path, its label (-1 = unknown)."""

    data: bytes
    path: str
    label: int
    where: str  # names the row in a quarantine entry


class Part(Protocol):
    """A picklable slice of a source that any process can read on its own."""

    def rows(self) -> Iterator[Row | Quarantined]:
        """Yield the rows in a fixed order; what cannot even be read comes as `Quarantined`."""


@dataclass(frozen=True)
class Source:
    """An opened source: listed, not read."""

    name: str
    kind: str
    class_names: tuple[str, ...]
    parts: tuple[Part, ...]
    digest: str
    location: tuple[pafs.FileSystem, str] | None = None
    quarantined: tuple[Quarantined, ...] = ()  # found while listing


def open_source(source: str, rows_per_part: int) -> Source:
    """Parse a source string, list the source and cut it into parts of at most `rows_per_part` rows.

    A tar file cannot be cut without reading it; it is one part whatever its length.

    Raises
    ------
    DataError
        For an unknown kind, a missing path, or a source that cannot be listed.
    """
    try:
        kind, path = _kind_and_path(source)
        opened = _OPENERS[kind](source, path, rows_per_part)
    except UnicodeDecodeError as error:
        raise DataError(f"{source!r} has a file name that is not UTF-8: {error.object!r}; rename it") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot list the source {source!r}: {error}") from error
    if not opened.parts and not opened.quarantined:
        remedy = f"imagefolder looks for {', '.join(IMAGE_SUFFIXES)}, parquet for rows"
        raise DataError(f"{source!r}, read as {kind}, holds no images; {remedy}")
    return opened


def _kind_and_path(source: str) -> tuple[str, str]:
    kind, _, path = source.partition(":")
    if kind == "digits" and not path:
        return "digits", ""
    if kind in _OPENERS and path and not path.startswith("//"):
        return kind, path
    if "{" in source or "*" in source:
        return "webdataset", source
    fs, inner = filesystem(source)
    info = fs.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        if source.lower().endswith(".tar"):
            return "webdataset", source  # may be a pattern
        raise _unknown(source, kind)
    suffixes = {posixpath.splitext(found.path)[1].lower() for found in _find(fs, inner)}
    return ("parquet" if ".parquet" in suffixes else "webdataset" if ".tar" in suffixes else "imagefolder"), source


def _unknown(source: str, kind: str) -> DataError:
    near = difflib.get_close_matches(kind, _OPENERS, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    forms = "digits, imagefolder:PATH, parquet:PATH, webdataset:PATTERN, torchvision:NAME:PATH, or a path that exists"
    return DataError(f"{source!r} is neither a source nor an existing path.{hint} Valid sources: {forms}")


# --- listing -------------------------------------------------------------------------------------------------


def _find(fs: pafs.FileSystem, root: str, suffixes: Sequence[str] = ("",)) -> list[pafs.FileInfo]:
    """Files at or below `root` with one of `suffixes`, sorted by path; hidden files and work folders are left out."""
    info = fs.get_file_info(root)
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{root} does not exist; give a path that does")
    if info.type == pafs.FileType.File:
        return [info]
    found = fs.get_file_info(pafs.FileSelector(root, recursive=True))
    files = [f for f in found if f.type == pafs.FileType.File and f.path.lower().endswith(tuple(suffixes))]
    return sorted((f for f in files if _visible(_relative(f.path, root))), key=lambda f: f.path)


def _visible(name: str) -> bool:
    return not any(piece.startswith((".", WORK_FOLDER)) for piece in name.split("/"))


def _relative(path: str, root: str) -> str:
    return posixpath.basename(path) if path == root else posixpath.relpath(path, root)


def _digest(kind: str, class_names: Iterable[str], items: Iterable[tuple[Any, ...]]) -> str:
    """A digest that changes with anything that could change the shards, and not with where the source lies."""
    digest = hashlib.sha256(json.dumps([kind, list(class_names)]).encode())
    for item in items:
        digest.update(json.dumps(item).encode())
    return digest.hexdigest()


def _stamps(files: Iterable[pafs.FileInfo], root: str) -> list[tuple[Any, ...]]:
    return [(_relative(f.path, root), f.size, f.mtime_ns) for f in files]


def _named_classes(fs: pafs.FileSystem, folder: str) -> tuple[str, ...]:
    """``class_names`` of a ``dataset.json`` in `folder`, or none."""
    path = f"{folder}/dataset.json"
    if fs.get_file_info(path).type != pafs.FileType.File:
        return ()
    with fs.open_input_file(path) as file:
        raw = file.read()
    try:
        names = json.loads(raw).get("class_names", [])
        if not isinstance(names, list):
            raise TypeError(f"class_names is {names!r}")
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is no JSON object with a list `class_names` ({error}); correct or remove it") from None
    return tuple(str(name) for name in names)


def _slices(count: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


# --- digits --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DigitsPart:
    """Rows of scikit-learn's bundled 8x8 digits, values 0..16 stretched to 0..255."""

    start: int
    stop: int

    def rows(self) -> Iterator[Row]:
        """Yield the digits as grayscale PNG."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = (digits.images * (255 / 16)).round().astype("uint8")
        for i in range(self.start, self.stop):
            path = f"digits/{i:04d}.png"
            yield Row(_png(Image.fromarray(pixels[i])), path, int(digits.target[i]), path)


def _open_digits(source: str, path: str, rows_per_part: int) -> Source:
    names = tuple("0123456789")
    parts = tuple(DigitsPart(*span) for span in _slices(1797, rows_per_part))
    return Source(source, "digits", names, parts, _digest("digits", names, []))


# --- image folders -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FilesPart:
    """Image files of a folder, as (path below `root`, label)."""

    fs: pafs.FileSystem
    root: str
    files: tuple[tuple[str, int], ...]

    def rows(self) -> Iterator[Row | Quarantined]:
        """Yield one row a file."""
        for name, label in self.files:
            try:
                with self.fs.open_input_file(f"{self.root}/{name}") as file:
                    data = file.read()
            except OSError as error:
                yield Quarantined(path=name, reason=f"cannot be read: {error}")
            else:
                yield Row(data, name, label, name)


def _open_imagefolder(source: str, path: str, rows_per_part: int) -> Source:
    fs, root = filesystem(path)
    if fs.get_file_info(root).type == pafs.FileType.File:
        raise DataError(f"{path} is a file; give the folder of images, or a .parquet or .tar file")
    files = _find(fs, root, IMAGE_SUFFIXES + FOREIGN_SUFFIXES)
    foreign = [_relative(f.path, root) for f in files if f.path.lower().endswith(FOREIGN_SUFFIXES)]
    files = [f for f in files if not f.path.lower().endswith(FOREIGN_SUFFIXES)]
    names = [_relative(f.path, root) for f in files]
    classes = _folder_classes(names)
    class_names = tuple(sorted({c for c in classes if c is not None}))
    number = {name: i for i, name in enumerate(class_names)}
    labelled = [(n, UNKNOWN_LABEL if c is None else number[c]) for n, c in zip(names, classes, strict=True)]
    parts = tuple(FilesPart(fs, root, tuple(labelled[a:b])) for a, b in _slices(len(labelled), rows_per_part))
    lost = tuple(Quarantined(path=n, reason="not JPEG, PNG, WebP or TIFF; convert it to PNG") for n in foreign)
    digest = _digest("imagefolder", class_names, [*_stamps(files, root), *((n,) for n in foreign)])
    return Source(source, "imagefolder", class_names, parts, digest, (fs, root), lost)


def _folder_classes(names: Sequence[str]) -> list[str | None]:
    """The class folder of each file; below train/val/test folders it is the second folder, and None is unlabelled."""
    folders = [name.split("/")[:-1] for name in names]
    top = {parts[0].lower() for parts in folders if parts}
    depth = 1 if top and top <= SPLIT_FOLDERS else 0
    return [parts[depth] if len(parts) > depth else None for parts in folders]


# --- Hugging Face Parquet ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParquetPart:
    """Row ranges of Parquet files, as (path, name, start, stop)."""

    fs: pafs.FileSystem
    spans: tuple[tuple[str, str, int, int], ...]

    def rows(self) -> Iterator[Row | Quarantined]:
        """Yield the rows of every span; what a damaged row group or file hides is quarantined, the others go on."""
        for path, name, start, stop in self.spans:
            try:
                with self.fs.open_input_file(path) as handle:
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


def _open_parquet(source: str, path: str, rows_per_part: int) -> Source:
    fs, root = filesystem(path)
    files = _find(fs, root, (".parquet",))
    if not files:
        raise DataError(f"no .parquet file in {path}; give a folder that holds some, or one such file")
    with ThreadPoolExecutor(16) as pool:  # remote footers are latency, not work
        footers = list(pool.map(lambda info: _footer(fs, info.path, _relative(info.path, root)), files))
    lost = tuple(footer for footer in footers if isinstance(footer, Quarantined))
    named = [(info.path, _relative(info.path, root), m) for info, m in zip(files, footers, strict=True)]
    good = [(path, name, m) for path, name, m in named if isinstance(m, pq.FileMetaData)]
    folder = root if len(files) != 1 or files[0].path != root else posixpath.dirname(root)
    class_names = _metadata_classes(good) or _named_classes(fs, folder)
    spans = _pack([metadata.num_rows for _, _, metadata in good], rows_per_part)
    parts = tuple(ParquetPart(fs, tuple((*good[i][:2], a, b) for i, a, b in part)) for part in spans)
    digest = _digest("parquet", class_names, _stamps(files, root))
    return Source(source, "parquet", class_names, parts, digest, (fs, root), lost)


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


def _pack(lengths: Iterable[int], size: int) -> list[list[tuple[int, int, int]]]:
    """Cut files of the given lengths into parts of `size` rows: lists of (file number, start, stop)."""
    parts: list[list[tuple[int, int, int]]] = [[]]
    room = size
    for number, length in enumerate(lengths):
        start = 0
        while start < length:
            if room == 0:
                parts.append([])
                room = size
            stop = min(start + room, length)
            parts[-1].append((number, start, stop))
            room -= stop - start
            start = stop
    return [part for part in parts if part]


# --- WebDataset tar files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TarPart:
    """One WebDataset tar file: consecutive members with the same stem are a sample."""

    fs: pafs.FileSystem
    path: str

    def rows(self) -> Iterator[Row | Quarantined]:
        """Yield the images of every sample up to the archive's end, or to its break, which is quarantined."""
        name, last = posixpath.basename(self.path), "the start"
        try:
            with self.fs.open_input_file(self.path) as file, tarfile.open(fileobj=file, mode="r:*") as tar:
                for last, sample in _samples(tar):
                    yield from _sample_rows(f"{name}: {last}", last, sample)
                if not _reached_end(tar):
                    yield Quarantined(path=name, reason=f"no end-of-archive mark after {last}, perhaps cut short there")
        except TAR_ERRORS as error:
            yield Quarantined(path=name, reason=f"broken after {last} ({error}); what follows is lost")


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, {suffix: content}); where the archive breaks, what is whole of the last sample comes first."""
    last, sample = "", dict[str, bytes]()
    try:
        for info in tar:
            if info.isfile():
                key, suffix = _key_and_suffix(info.name)
                if sample and (key != last or suffix in sample):
                    yield last, sample
                    sample = {}
                content = tar.extractfile(info)
                assert content is not None  # only None for members that are no regular files
                last, sample[suffix] = key, content.read()
    except TAR_ERRORS:
        if sample:
            yield last, sample
        raise
    if sample:
        yield last, sample


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Split a member's name at the first dot of its last piece, as WebDataset does."""
    folder, file = posixpath.split(name)
    stem, dot, suffix = file.partition(".")
    return posixpath.join(folder, stem), (dot + suffix).lower()


def _reached_end(tar: tarfile.TarFile) -> bool:
    """Whether reading stopped at the zero block that ends an archive; tarfile also stops, silently, at garbage."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    return tar.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _sample_rows(where: str, key: str, sample: dict[str, bytes]) -> Iterator[Row | Quarantined]:
    images = {suffix: data for suffix, data in sample.items() if suffix in IMAGE_SUFFIXES}
    if not images:
        yield Quarantined(path=where, reason=f"no image among {sorted(sample)}; it must end in {IMAGE_SUFFIXES}")
        return
    try:
        label = _sample_label(sample)
    except (ValueError, TypeError, AttributeError) as error:
        yield Quarantined(path=where, reason=f"the label is no integer: {error}", rows=len(images))
        return
    for suffix, data in images.items():
        yield Row(data, key + suffix, label, where + suffix)


def _sample_label(sample: dict[str, bytes]) -> int:
    if ".cls" in sample:
        return int(sample[".cls"])
    label = json.loads(sample[".json"]).get("label") if ".json" in sample else None
    if label is None:
        return UNKNOWN_LABEL
    if type(label) is not int:
        raise TypeError(f"{label!r} under 'label' in the .json")
    return label


def _open_webdataset(source: str, path: str, rows_per_part: int) -> Source:
    found = [_expand(piece) for piece in braceexpand(path)]
    fs, root, _ = found[0]
    files = [info for _, _, infos in found for info in infos]
    location = filesystem(path) if len(found) == 1 else None
    class_names = _named_classes(fs, root)
    parts = tuple(TarPart(fs, info.path) for info in files)
    digest = _digest("webdataset", class_names, _stamps(files, root))
    return Source(source, "webdataset", class_names, parts, digest, location)


def _expand(path: str) -> tuple[pafs.FileSystem, str, list[pafs.FileInfo]]:
    """(filesystem, folder, tar files) of a tar file, a folder of them, or a pattern with ``*``, ``?``, ``[``."""
    fs, inner = filesystem(path)
    kind = fs.get_file_info(inner).type
    if kind == pafs.FileType.Directory:
        folder, files = inner, _find(fs, inner, (".tar",))
    elif kind == pafs.FileType.File:
        folder, files = posixpath.dirname(inner), _find(fs, inner)
    else:
        folder = re.split(r"[*?\[]", inner)[0].rpartition("/")[0]
        files = [f for f in _find(fs, folder) if PurePosixPath(f.path).match(inner)]
    if not files:
        remedy = "give a .tar, a folder of them, or a pattern such as x-{000..010}.tar"
        raise DataError(f"no tar file matches {path}; {remedy}")
    return fs, folder, files


# --- torchvision ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TorchvisionPart:
    """Items of one split of a torchvision data set on disk."""

    name: str
    root: str
    split: tuple[tuple[str, Any], ...]
    start: int
    stop: int

    def rows(self) -> Iterator[Row | Quarantined]:
        """Yield the items re-encoded as PNG."""
        dataset = _torchvision(self.name, self.root, dict(self.split))
        prefix = "-".join([self.name, *(str(value).lower() for _, value in self.split)])
        for i in range(self.start, self.stop):
            path = f"{prefix}/{i:06d}.png"
            try:
                image, label = dataset[i]
                row: Row | Quarantined = Row(_png(image), path, int(label), path)
            except Exception as error:  # each data set reads its files its own way
                row = Quarantined(path=path, reason=f"cannot be read: {error!r}")
            yield row


def _torchvision(name: str, root: str, split: dict[str, Any]) -> Any:
    import torchvision.datasets

    try:
        return getattr(torchvision.datasets, name)(root, download=False, **split)
    except (RuntimeError, OSError) as error:
        call = ", ".join([repr(root), *(f"{key}={value!r}" for key, value in split.items()), "download=True"])
        raise DataError(
            f"torchvision finds no {name} in {root} ({error}); fetch it first: torchvision.datasets.{name}({call})"
        ) from error


def _open_torchvision(source: str, path: str, rows_per_part: int) -> Source:
    name, _, where = path.partition(":")
    if name not in TORCHVISION or not where:
        near = difflib.get_close_matches(name, TORCHVISION, 1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{source!r} is not torchvision:NAME:PATH.{hint} Valid names: {', '.join(sorted(TORCHVISION))}")
    fs, root = filesystem(where)
    parts: list[Part] = []
    class_names: tuple[str, ...] = ()
    for split in TORCHVISION[name]:
        dataset = _torchvision(name, root, split)
        class_names = tuple(getattr(dataset, "classes", ()))
        spans = _slices(len(dataset), rows_per_part)
        parts += [TorchvisionPart(name, root, tuple(split.items()), a, b) for a, b in spans]
    digest = _digest(f"torchvision:{name}", class_names, _stamps(_find(fs, root), root))
    return Source(source, "torchvision", class_names, tuple(parts), digest, (fs, root))


_OPENERS: dict[str, Callable[[str, str, int], Source]] = {
    "digits": _open_digits,
    "imagefolder": _open_imagefolder,
    "parquet": _open_parquet,
    "webdataset": _open_webdataset,
    "torchvision": _open_torchvision,
}
