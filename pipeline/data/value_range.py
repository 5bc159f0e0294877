"""The first step of an ingest with `--range percentile`: measures which values of the data set become black and white.

Scaling each image by its own range would make a dark and a bright one look alike, so all images share one range: the
1st and the 99th percentile of each channel, over 4,096 random pixels from each of about 1,024 images, evenly spaced
over the source. Pixels without a value (transparent, NaN, GDAL's no-data) are ignored.
"""

from __future__ import annotations

import warnings

import numpy as np

from pipeline.data.pixel_options import Limits, PixelOptions
from pipeline.data.pixels import read_values
from pipeline.data.raw_values import Array, Unreadable
from pipeline.data.sources import Row, Source, SourcePart
from pipeline.data.tasks import run_each
from pipeline.errors import DataError

IMAGES = 1024
PIXELS = 4096
PERCENTILES = (1, 99)


def measure_range(source: Source, pixels: PixelOptions, rows_per_part: int) -> tuple[Limits, Limits, Limits]:
    """(low, high) of red, green and blue. This reads every byte of the source and decodes a sample.

    Raises
    ------
    DataError
        If no image of the sample has more than 8 bits, so that a range has no effect.
    """
    stride = max(1, len(source.parts) * rows_per_part // IMAGES)
    calls = [(part, k, pixels, stride) for k, part in enumerate(source.parts)]
    found = dict(run_each(_sample_part, calls))
    samples = np.concatenate([np.empty((0, 3)), *(found[k] for k in range(len(source.parts)))])
    if not len(samples):
        raise DataError(
            f"--range percentile: no sampled image of {source.name!r} both has more than 8 bits and can be read with "
            f"{pixels}; leave --range out; quarantine.jsonl then has the reason for each image that cannot be read"
        )
    low, high = np.percentile(samples, PERCENTILES, axis=0)
    high = np.where(high > low, high, low + 1)  # a constant channel is black
    red, green, blue = zip(low.tolist(), high.tolist(), strict=True)
    return red, green, blue


def _sample_part(part: SourcePart, k: int, pixels: PixelOptions, stride: int) -> tuple[int, Array]:
    """Values (N, 3) of pixels of every `stride`-th image of part number `k`."""
    samples = [np.empty((0, 3))]
    with warnings.catch_warnings(action="ignore"):
        for position, row in enumerate(part()):
            if position % stride == 0 and isinstance(row, Row):
                samples.append(_sample_image(row.data, pixels, np.random.default_rng([k, position])))
    return k, np.concatenate(samples)


def _sample_image(data: bytes, pixels: PixelOptions, random: np.random.Generator) -> Array:
    try:
        values = read_values(data, pixels)
    except Unreadable:  # it is quarantined later, with the reason
        values = None
    return np.empty((0, 3)) if values is None or not len(values) else random.choice(values, PIXELS)
