"""Sources that tests write, and what an ingest of them left."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.shards import LEFT_OUT, QUARANTINE, validate_shards

CLASSES = ["cat", "dog"]


def noisy_jpeg(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def shards_of(folder: Path) -> list[list[dict[str, Any]]]:
    """The rows of each shard; their folder is validated, and every image decoded, on the way."""
    manifest = validate_shards(str(folder))
    shards = [pq.read_table(folder / shard.file).to_pylist() for shard in manifest.shards]
    assert [row.pop("index") for rows in shards for row in rows] == list(range(manifest.num_images))
    for row in itertools.chain(*shards):
        Image.open(io.BytesIO(row["image"]["bytes"])).load()
    return shards


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows, by path: their order in the shards is a fixed random one."""
    return sorted(itertools.chain(*shards_of(folder)), key=lambda row: row["image"]["path"])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the summary, which holds the time that it took."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != "summary.json"}


def labels(folder: Path) -> list[tuple[str, int]]:
    return [(row["image"]["path"], row["label"]) for row in rows_of(folder)]


def write_parquet(path: Path, images: Sequence[bytes | None], names: list[str] | None = None, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(structs, kind), **columns})
    if names:
        features = {"label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=4)


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def left_out(folder: Path) -> dict[str, str]:
    """Rules by path of all that the ingest into `folder` left out."""
    return {entry["path"]: entry["rule"] for entry in _lines(folder / LEFT_OUT)}


def quarantined(folder: Path) -> dict[str, str]:
    """Reasons by path of all that the ingest into `folder` quarantined."""
    return {entry["path"]: entry["reason"] for entry in _lines(folder / QUARANTINE)}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
