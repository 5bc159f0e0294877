"""Pictures whose right look is known, and files that hold them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tifffile
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants(width: int = 24, height: int = 16) -> np.ndarray:
    """Red, green above; blue, white below: uint8 (height, width, 3)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    pixels[:top, :left], pixels[:top, left:] = RED, GREEN
    pixels[top:, :left], pixels[top:, left:] = BLUE, WHITE
    return pixels


def stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels as a camera stores them with an orientation of EXIF, from which a viewer shows `pixels`."""
    across = pixels.transpose(1, 0, 2)
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: across,
        6: np.rot90(pixels, 1),
        7: np.rot90(across, 2),
        8: np.rot90(pixels, -1),
    }
    return np.ascontiguousarray(turned[orientation])


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    """The values as tifffile writes them."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()
