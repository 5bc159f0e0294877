"""Damaged files against Pillow: our reader must not crash, print, or accept what Pillow refuses.

    python -m benchmarks.fuzz [--count 1600] [--seed 0]

Small images of every stored format are cut, overwritten and get flipped bits. Each goes through `read_picture` as at
ingest; accepted files then go through `decode_table` as in training, and must show Pillow's pixels within 2 levels. The
work is done in separate processes, so that a crash in a decoder is counted and does not end the benchmark.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import warnings
from collections import Counter

import imagecodecs
import numpy as np
import pyarrow as pa
import tifffile
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as T

from pipeline.data.decode import decode_table
from pipeline.data.formats import image_format
from pipeline.data.pixel_options import PixelOptions
from pipeline.data.pixels import PILLOW_NAMES, read_picture
from pipeline.data.quiet import stderr_into
from pipeline.data.raw_values import Unreadable
from pipeline.data.shards import IMAGE_TYPE

SIZE = 48
LEVELS = 2  # by which two decoders of a lossy format may differ
BATCH = 200  # cases per process
OPTIONS = PixelOptions(range=(0, 3000))


def originals() -> dict[str, bytes]:
    """Sound files of every stored format, by a name that starts with it."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    deep = np.asarray(image).astype(np.uint16) * 11
    found: dict[str, bytes] = {
        "JPEG": _saved(image, "JPEG", quality=90),
        "JPEG progressive": _saved(image, "JPEG", progressive=True),
        "JPEG gray": _saved(image.convert("L"), "JPEG"),
        "JPEG CMYK": _saved(image.convert("CMYK"), "JPEG"),
        "WebP": _saved(image, "WEBP", quality=90),
        "WebP lossless": _saved(image, "WEBP", lossless=True),
        "PNG": _saved(image, "PNG"),
        "PNG palette": _saved(image.convert("P"), "PNG"),
        "PNG 16 bits": bytes(imagecodecs.png_encode(deep)),
    }
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        found[f"TIFF {compression}"] = _saved(image, "TIFF", compression=compression)
    for codec in (None, "lzw", "zstd"):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, deep, photometric="rgb", compression=codec, tile=(16, 16))
        found[f"TIFF 16 bits {codec}"] = buffer.getvalue()
    return found


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def damage(data: bytes, random: np.random.Generator) -> bytes:
    """The file with one of five kinds of damage, anywhere in it."""
    at, length = int(random.integers(len(data))), int(random.integers(1, 64))
    match random.integers(5):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes(len(data) - at)
        case 2:
            return data[:at] + random.bytes(length) + data[at + length :]
        case 3:
            return data[:at] + data[at + length :]
        case _:
            flipped = bytearray(data)
            flipped[at] ^= 1 << int(random.integers(8))
            return bytes(flipped)


def verdict(name: str, data: bytes) -> str:
    """What became of a damaged file; a word with "BUT" is a fault."""
    expected = _by_pillow(data)
    try:
        picture = read_picture(data, OPTIONS)
    except Unreadable:
        return "refused, as by Pillow" if expected is None else "refused, though Pillow reads it"
    if not picture.as_stored:
        return "rewritten as PNG"
    if expected is None:
        return "accepted BUT Pillow refuses it"
    wanted = T.resize(T.pil_to_tensor(expected), [SIZE, SIZE], antialias=True)
    row = pa.table({"image": pa.array([{"bytes": data, "path": name}], IMAGE_TYPE), "index": [0]})
    apart = np.abs(decode_table(row, SIZE)["image"][0].astype(int) - wanted.permute(1, 2, 0).numpy()).max()
    return "accepted, as by Pillow" if apart <= LEVELS else f"accepted BUT {apart} levels from Pillow"


def _by_pillow(data: bytes) -> Image.Image | None:
    """Pillow's RGB, upright; None where it refuses to verify, load or convert."""
    name = image_format(data) or ""
    with open(os.devnull, "wb") as null, stderr_into(null.fileno()):  # libtiff prints what it stumbles over
        try:
            with Image.open(io.BytesIO(data), formats=(PILLOW_NAMES.get(name, name),)) as image:
                image.verify()
            return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        except Exception:
            return None


def run_batch(seed: int, start: int, count: int) -> list[str]:
    """ "NAME: verdict" of the cases from `start` on."""
    warnings.simplefilter("ignore")
    files = list(originals().items())
    found = []
    for number in range(start, start + count):
        name, data = files[number % len(files)]
        found.append(f"{name}: {verdict(name, damage(data, np.random.default_rng([seed, number])))}")
    return found


def main() -> None:
    """Print how many files of each kind had which outcome; exit status 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts: Counter[str] = Counter()
    for start in range(0, given.count, BATCH):
        call = f"run_batch({given.seed}, {start}, {min(BATCH, given.count - start)})"
        code = f"import json; from benchmarks.fuzz import run_batch; print(json.dumps({call}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if done.stderr:
            counts[f"batch {start}: BUT printed {done.stderr[-300:]!r}"] += 1
        if done.returncode:
            counts[f"batch {start}: BUT the process ended with status {done.returncode}"] += 1
        else:
            counts.update(json.loads(done.stdout))
    for what, number in sorted(counts.items()):
        print(f"{number:6,}  {what}")
    bad = sum(number for what, number in counts.items() if "BUT" in what)
    print(f"{given.count:,} damaged files, {bad} faults")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
