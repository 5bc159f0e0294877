"""scikit-learn's bundled digits: 1797 grayscale images of 8x8 pixels, without a download."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from PIL import Image

from pipeline.data.pixels import png
from pipeline.data.sources.base import Row, Source, cut, shuffled, stamp

NUM_DIGITS = 1797


def open_digits(source: str, path: str, rows_per_part: int) -> Source:
    """The digits in parts of `rows_per_part` images, shuffled."""
    names = tuple("0123456789")
    parts = tuple(partial(_rows, numbers) for numbers in cut(shuffled(range(NUM_DIGITS)), rows_per_part))
    return Source(source, "digits", names, parts, "rows", NUM_DIGITS, stamp("digits", names))


def _rows(numbers: tuple[int, ...]) -> Iterator[Row]:
    """The digits as grayscale PNG, values 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")
    for i in numbers:
        path = f"digits/{i:04d}.png"
        yield Row(png(Image.fromarray(pixels[i])), path, int(digits.target[i]), path)
