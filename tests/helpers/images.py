"""Images and files for several tests of the data."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image


def encoded(value: int = 0, kind: str = "PNG", size: tuple[int, int] = (6, 5), mode: str = "RGB") -> bytes:
    """An encoded image of one colour, a different one for each value."""
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 255 - value)).save(buffer, kind)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> None:
    """Write a file, and create its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
