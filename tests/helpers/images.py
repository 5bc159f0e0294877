"""Images and files that several tests of the data need."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image


def encoded(value: int = 0, kind: str = "PNG", size: tuple[int, int] = (6, 5), mode: str = "RGB") -> bytes:
    """An image of one colour; another one for each value."""
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 255 - value)).save(buffer, kind)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> None:
    """Write a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
