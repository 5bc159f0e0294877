"""JPEG images with the size and the bytes of photographs, as a source for `digpro ingest`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDES = range(256, 301)  # pixels of the stored images
ROW_GROUP = 256
QUALITY = 90


def write_jpegs(folder: Path, count: int, seed: int = 0) -> str:
    """Write `count` images of 256 to 300 pixels a side, 10 labels, as a Parquet file; returns the source."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    with pq.ParquetWriter(folder / "images.parquet", schema, compression="none") as writer:
        for first in range(0, count, ROW_GROUP):
            numbers = range(first, min(first + ROW_GROUP, count))
            images = [{"bytes": jpeg(rng), "path": f"{number}.jpg"} for number in numbers]
            columns = [pa.array(images, kind), pa.array([number % 10 for number in numbers])]
            writer.write_table(pa.table(columns, schema=schema))
    return f"parquet:{folder}"


def jpeg(rng: np.random.Generator) -> bytes:
    """An image of large smooth shapes, smaller ones, and some noise: about 35 kB, as a photograph of this size has."""
    width, height = (int(side) for side in rng.choice(SIDES, 2))
    layers = [_smooth(rng, patches, width, height) for patches in (4, 32)]
    noise = rng.normal(0, 6, (height, width, 3))
    pixels = 0.75 * layers[0] + 0.25 * layers[1] + noise
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _smooth(rng: np.random.Generator, patches: int, width: int, height: int) -> np.ndarray[tuple[int, ...], np.dtype]:
    """Random colours of patches x patches, blown up: float (height, width, 3)."""
    coarse = Image.fromarray(rng.integers(0, 256, (patches, patches, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
