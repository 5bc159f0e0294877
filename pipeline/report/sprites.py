"""Small pictures packed into sheets: one file for a thousand of them, within a limit in bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

SIDES = (160, 128, 96, 64, 48)  # pixels of a tile, multiples of 16: WebP's blocks then never mix two tiles
PIXELS = 48_000_000  # of all tiles together: about 13 MB of photographs
QUALITIES = (80, 60, 40, 20, 5, 0)
SHEET = 1920  # pixels of a sheet's side: phones refuse much larger pictures
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Pictures:
    """Whole images, each stretched to a square tile: no pixel is lost to bars, and the page restores the shape.

    Attributes
    ----------
    tiles : uint8 ndarray (n, side, side, 3)
    aspects : float32 ndarray (n,)
        Width / height of each image.
    """

    tiles: Array
    aspects: Array

    def __len__(self) -> int:
        return len(self.tiles)

    def at(self, places: Array) -> Pictures:
        """The pictures at these places, in their order."""
        return Pictures(self.tiles[places], self.aspects[places])


@dataclass(frozen=True)
class Sheets:
    """Square tiles in rows of `columns`, `tiles_per_sheet` to a WebP file."""

    side: int
    columns: int
    files: Sequence[bytes]

    @property
    def tiles_per_sheet(self) -> int:
        """Tiles of a full sheet."""
        return self.columns**2


def tile_side(count: int) -> int:
    """Pixels of a tile's side when there are `count` of them: the fewer, the larger."""
    return next((side for side in SIDES if count * side**2 <= PIXELS), SIDES[-1])


def pack(tiles: Array, most_bytes: int) -> Sheets:
    """Tiles uint8 (n, side, side, 3) as sheets, in the best quality that takes no more than `most_bytes`.

    If even the worst quality does not fit, the sheets are larger than `most_bytes`.
    """
    side = tiles.shape[1]
    columns = SHEET // side
    parts = [_sheet(tiles[first : first + columns**2], columns) for first in range(0, len(tiles), columns**2)]
    for quality in QUALITIES:
        files = _encode(parts, quality, most_bytes)
        if files is not None:
            break
    else:
        files = _encode(parts, QUALITIES[-1], math.inf)
    return Sheets(side, columns, files or [])


def _sheet(tiles: Array, columns: int) -> Array:
    """Up to columns**2 tiles as one picture, as high as they need."""
    side, rows = tiles.shape[1], math.ceil(len(tiles) / columns)
    cells = np.zeros((rows * columns, side, side, 3), np.uint8)
    cells[: len(tiles)] = tiles
    return cells.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, columns * side, 3)


def _encode(parts: Sequence[Array], quality: int, most_bytes: float) -> list[bytes] | None:
    """The sheets in one quality; None as soon as they take too many bytes."""
    files: list[bytes] = []
    for part in parts:
        buffer = io.BytesIO()
        Image.fromarray(part).save(buffer, "WEBP", quality=quality, method=2)
        files.append(buffer.getvalue())
        if sum(map(len, files)) > most_bytes:
            return None
    return files


def jpeg(tile: Array, aspect: float) -> bytes:
    """A tile uint8 (side, side, 3) as JPEG in the shape of its image; the longer side keeps its length."""
    buffer, side = io.BytesIO(), len(tile)
    shape = (max(1, round(side * min(1, aspect))), max(1, round(side * min(1, 1 / aspect))))
    Image.fromarray(tile).resize(shape).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
