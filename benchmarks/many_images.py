"""Millions of small images in groups, as Parquet files: a source for `digpro ingest`, made within minutes.

    python -m benchmarks.many_images FOLDER --images 10000000       # 3 GB

Each group has a random image of its own, and each image is that of its group plus noise. The label is the group. A
file depends on the seed and its own number only. The same command continues where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import os
import struct
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUPS = 1000
COARSE = 4  # a group's image has so many random patches a side, which survive crops
NOISE = 48  # levels, at most
FILE_IMAGES, ROW_GROUP = 100_000, 10_000
LARGEST = 147  # pixels a side whose rows fit the 65,535 bytes of one stored block
SCHEMA = pa.schema(
    [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
)
Images = np.ndarray[Any, np.dtype[np.uint8]]


def write_images(folder: Path, images: int, size: int = 8, seed: int = 0, processes: int = 1) -> list[Path]:
    """Write the images as Parquet files; those that are there are kept.

    Parameters
    ----------
    folder : Path
        Is created.
    images, size : int
        How many, and their side in pixels, 4 to 147.
    seed, processes : int

    Returns
    -------
    list of Path
        The files, in order.
    """
    if not COARSE <= size <= LARGEST:
        raise ValueError(f"size is {size}; give {COARSE} to {LARGEST} pixels")
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, images, FILE_IMAGES)
    paths = [folder / f"images-{start // FILE_IMAGES:05d}.parquet" for start in starts]
    ends = [min(start + FILE_IMAGES, images) for start in starts]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(partial(_write_file, size=size, seed=seed), paths, starts, ends))
    return paths


def _write_file(path: Path, start: int, end: int, *, size: int, seed: int) -> None:
    """Images `start` to `end` as one file, which appears whole or not at all."""
    if path.exists():
        return
    bases, rng = group_images(size, seed), np.random.default_rng((seed, start))
    partial_file = path.with_suffix(".tmp")
    with pq.ParquetWriter(partial_file, SCHEMA, compression="none", use_dictionary=False) as writer:
        for first in range(start, end, ROW_GROUP):
            writer.write_table(_rows(bases, np.arange(first, min(first + ROW_GROUP, end)), rng))
    os.replace(partial_file, path)


def group_images(size: int, seed: int) -> Images:
    """The image of each group, uint8 (GROUPS, size, size, 3), as far from black and white as noise can change it."""
    patches = np.random.default_rng(seed).integers(NOISE, 256 - NOISE, (GROUPS, COARSE, COARSE, 3), dtype=np.uint8)
    at = np.arange(size) * COARSE // size
    return patches[:, at][:, :, at]


def _rows(bases: Images, numbers: np.ndarray[Any, Any], rng: np.random.Generator) -> pa.Table:
    labels = numbers % GROUPS
    noise = rng.integers(-NOISE, NOISE, (len(numbers), *bases.shape[1:]), dtype=np.int8)
    pixels = bases[labels] + noise.view(np.uint8)  # wraps modulo 256, so adding a negative number works too
    data = pa.array(encode_pngs(pixels), pa.binary())
    paths = pa.array([f"{number}.png" for number in numbers.tolist()])
    images = pa.StructArray.from_arrays([data, paths], fields=list(SCHEMA.field("image").type))
    return pa.table([images, pa.array(labels)], schema=SCHEMA)


def encode_pngs(images: Images) -> list[bytes]:
    """RGB images uint8 (n, S, S, 3) as PNG files without compression, since noise does not shrink."""
    count, size = images.shape[:2]
    lines = np.zeros((count, size, 1 + 3 * size), dtype=np.uint8)  # each line begins with its filter, 0 for none
    lines[:, :, 1:] = images.reshape(count, size, 3 * size)
    length = size * (1 + 3 * size)
    start = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0))
    start += struct.pack(">I", 11 + length)
    head = b"IDAT\x78\x01\x01" + struct.pack("<HH", length, length ^ 0xFFFF)  # zlib, one last stored block
    end, files = _chunk(b"IEND", b""), []
    for line in lines.reshape(count, length):
        data = line.tobytes()
        body = head + data + struct.pack(">I", zlib.adler32(data))
        files.append(start + body + struct.pack(">I", zlib.crc32(body)) + end)
    return files


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def main() -> None:
    """Write the images of the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=8, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    started = time.perf_counter()
    paths = write_images(args.folder, args.images, args.size, args.seed, args.processes)
    seconds, megabytes = time.perf_counter() - started, sum(path.stat().st_size for path in paths) / 1e6
    print(f"{args.images:,} images in {len(paths)} files, {megabytes:,.0f} MB, {seconds:.1f} s")


if __name__ == "__main__":
    main()
