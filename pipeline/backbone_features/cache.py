"""The cache of backbone features: Parquet parts, the backbone, and a description that is written last.

A part holds the rows {"index", "view", "feature"} of a range of images: view 0 is un-augmented, the others are
augmented. The key of the cache consists of all that determines the features; a folder holds the features of one key.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.errors import DataError
from pipeline.storage import Folder, remedy_for

CACHE, WORK, BACKBONE = "cache.json", "work.json", "backbone.safetensors"
KEY_VERSION = 1  # raise it when the same key would give other features
Half = np.ndarray[Any, np.dtype[np.float16]]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CacheKey(_Record):
    """All that determines the features; caches with the same key are equal."""

    version: int = KEY_VERSION
    images: str
    """Digest of the images and of their order (`Manifest.digest`)."""
    encoder: str
    weights: str
    """Digest of the backbone's weights."""
    preprocessing: dict[str, Any]
    views: dict[str, Any]
    precision: str

    @property
    def digest(self) -> str:
        """Eight characters that change with the key."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]


class CachePart(_Record):
    """A Parquet file with the backbone features of images `first_index` to `first_index + rows - 1`."""

    file: str
    first_index: int
    rows: int


class FeatureCache(_Record):
    """A complete cache, as `cache.json` describes it."""

    schema_version: Literal[1] = 1
    key: CacheKey
    num_images: int
    views: int
    """Rows of an image: the un-augmented view, and the augmented ones."""
    feature_size: int
    parts: tuple[CachePart, ...]
    seconds: float
    """Time that the command which completed it took."""

    @property
    def bytes(self) -> int:
        """Memory that the features take."""
        return self.num_images * self.views * self.feature_size * np.dtype(np.float16).itemsize


def cache_key(config: RunConfig, manifest: Manifest, weights: str, mean: list[float], std: list[float]) -> CacheKey:
    """The key of the backbone features that a settled configuration asks for.

    `weights` is the digest of the backbone's weights; `mean` and `std` normalise the images.
    """
    views = config.views.model_dump(mode="json", exclude={"neighbours"})
    preprocessing = {**config.data.decoding, "mean": mean, "std": std}
    return CacheKey(
        images=manifest.digest,
        encoder=config.model.encoder,
        weights=weights,
        preprocessing=preprocessing,
        views=views,
        precision=config.optim.precision,
    )


def decides_features(setting: str) -> bool:
    """Whether the cached features depend on a setting, given by its dotted key."""
    section, _, name = setting.partition(".")
    if section in ("data", "views"):
        return name != "neighbours"
    own = ("model.encoder", "model.weights", "model.weights_prefix", "model.partial_weights", "model.freeze")
    return setting in (*own, "optim.precision")


def read_cache(folder: Folder) -> FeatureCache | None:
    """The description of a complete cache; None where there is none.

    Raises
    ------
    DataError
        When it is damaged.
    """
    values = folder.read(CACHE)
    if values is None:
        return None
    try:
        return FeatureCache.model_validate(values)
    except ValidationError as error:
        raise DataError(
            f"{folder.file(CACHE)} is damaged or of another version ({error.errors()[0]['msg']}); delete the folder, "
            "and run the command again to compute the features"
        ) from None


def check_same_key(found: CacheKey, wanted: CacheKey, folder: Folder) -> None:
    """Raise a DataError that lists the differences if a folder holds the features of another key."""
    before, now = found.model_dump(mode="json"), wanted.model_dump(mode="json")
    if changed := [f"{name} {_difference(before[name], now[name])}" for name in now if before[name] != now[name]]:
        raise DataError(
            f"{folder.path} holds the features of another backbone, other images or other views: {'; '.join(changed)}. "
            "Give another folder, or the settings with which these features were computed"
        )


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in now if before.get(key) != now[key]]
        before, now = ({key: values.get(key) for key in keys} for values in (before, now))
    return f"was {json.dumps(before)}, is {json.dumps(now)}"


def part_table(first_index: int, features: Half) -> pa.Table:
    """The rows of a part from the features (rows, views, F) of consecutive images."""
    rows, views, size = features.shape
    index = np.repeat(np.arange(first_index, first_index + rows), views)
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), size)
    view = np.tile(np.arange(views, dtype=np.int16), rows)
    return pa.table({"index": index, "view": view, "feature": column})


def read_part(folder: Folder, part: CachePart, cache: FeatureCache) -> Half:
    """The features (rows, views, F) of a part.

    Raises
    ------
    DataError
        When the file is missing, damaged, or not what the cache says.
    """
    remedy = f"delete {CACHE} and this file, and run the command again"
    try:
        with folder.files.open_input_file(f"{folder.root}/{part.file}") as file:
            table = pq.read_table(file, page_checksum_verification=True)
        index, view = table.column("index").to_numpy(), table.column("view").to_numpy()
        flat = table.column("feature").combine_chunks().flatten().to_numpy()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"{folder.file(part.file)} cannot be read ({error}); {remedy_for(error, remedy)}") from error
    expected = np.arange(part.first_index, part.first_index + part.rows)
    if not np.array_equal(index, np.repeat(expected, cache.views)) or not np.array_equal(
        view, np.tile(np.arange(cache.views), part.rows)
    ):
        raise DataError(f"{folder.file(part.file)} does not hold the images and views that {CACHE} lists; {remedy}")
    return flat.reshape(part.rows, cache.views, cache.feature_size)


def read_backbone(folder: Folder) -> dict[str, Tensor]:
    """The backbone's weights stored in a cache."""
    return dict(safetensors.torch.load(folder.read_bytes(BACKBONE)))


def read_backbone_features(folder: Folder, cache: FeatureCache, into: Half) -> None:
    """Read all parts into an array (N, views, F), which may be a mapped file; a few parts are in memory at a time."""

    def put(part: CachePart) -> None:
        into[part.first_index : part.first_index + part.rows] = read_part(folder, part, cache)

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(put, cache.parts):
            pass
