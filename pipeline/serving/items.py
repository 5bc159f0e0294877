"""Images in the forms in which people send them: split into single images with an index, and read as pixels."""

from __future__ import annotations

import base64
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.data.formats import HEAD_BYTES, image_format
from pipeline.data.pixel_options import PixelOptions
from pipeline.data.pixels import shown

COLUMN = "image"
KEYS = (COLUMN, "bytes", "b64")  # ours, that of Hugging Face records, and that of TensorFlow Serving
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}  # of pixels, with Pillow's mode
BY_ROW = "(N, height, width, 3), (N, height, width, 4), (N, height, width, 1) or (N, height, width)"
_STANDARD = str.maketrans("-_", "+/")  # from base64's URL-safe alphabet

Array = np.ndarray[Any, Any]


def listed(given: Any) -> tuple[list[Any], pd.Index]:
    """The images in a table, series, dict, array or list, or a single one; and the index for their answers.

    Raises
    ------
    ValueError
        For input that cannot be split into images.
    """
    if isinstance(given, pd.DataFrame) and not given.columns.is_unique:
        raise ValueError(f"the table has several columns with the same name: {reprlib.repr(list(given.columns))}")
    if isinstance(given, (pd.DataFrame, Mapping)):
        return listed(_value(given))
    if isinstance(given, pd.Series):
        return given.tolist(), given.index
    items = _items(given)
    return items, pd.RangeIndex(len(items))


def _value(record: Any) -> Any:
    """The images of a table, or the image of a record."""
    key = next((key for key in KEYS if key in record), None)
    if key is None:
        raise ValueError(f"there is no column {COLUMN!r} but {reprlib.repr(list(record))}")
    return record[key]


def _items(given: Any) -> list[Any]:
    if isinstance(given, (str, bytes, bytearray, memoryview, Image.Image)):
        return [given]
    if isinstance(given, (list, tuple)):
        nested = len(given) > 0 and all(isinstance(item, (list, tuple)) for item in given)
        return _rows(_numbers(given)) if nested else list(given)
    if hasattr(given, "__array__"):
        return _rows(np.asarray(given))
    return list(given) if isinstance(given, Iterable) else [given]


def _numbers(given: Any) -> Array:
    """Nested lists as an array."""
    try:
        return np.asarray(given)
    except ValueError:
        raise ValueError(f"lists of unequal lengths; send pixels of shape {BY_ROW}") from None


def _rows(array: Array) -> list[Any]:
    """The images in an array of objects, texts or pixels."""
    if array.dtype.kind in "OUS":
        return list(array.reshape(-1)) if array.ndim < 2 or array.shape[1:] == (1,) else [array]
    if (array.ndim == 1 and array.dtype == np.uint8) or (array.ndim == 3 and array.shape[2] in CHANNELS):
        return [array]
    if array.ndim < 3 or array.ndim > 4:
        raise ValueError(
            f"{array.dtype} of shape {array.shape} is not a batch of images; send integers 0 to 255 {BY_ROW}"
        )
    return list(array)


def read_item(item: Any, options: PixelOptions) -> bytes | Image.Image:
    """An image as the bytes of its file, or as pixels of mode RGB.

    Raises
    ------
    ValueError
        With what the item is, and what to send instead.
    """
    while isinstance(item, Mapping) or (isinstance(item, np.ndarray) and item.shape == () and item.dtype.kind in "OUS"):
        item = _bytes_of(item) if isinstance(item, Mapping) else item.item()
    if isinstance(item, str):
        return from_base64(item)
    if isinstance(item, (bytes, bytearray, memoryview)):
        return _file(bytes(item))
    if isinstance(item, Image.Image):
        return shown(item, options)
    pixels = _numbers(item)
    if pixels.ndim == 0:
        raise ValueError(f"{reprlib.repr(item)} is not an image; send the bytes of its file")
    if pixels.ndim == 1 and pixels.dtype == np.uint8:
        return _file(pixels.tobytes())
    return shown(picture(pixels), options.model_copy(update={"bands": None}))  # the sender has chosen the bands


def _bytes_of(record: Mapping[str, Any]) -> Any:
    value = _value(record)
    if value is None:
        raise ValueError(f"the record {reprlib.repr(dict(record))} has no bytes; send them, because paths are not read")
    return value


def _file(data: bytes) -> bytes:
    """The bytes of a file; base64 is decoded first."""
    if image_format(data[:HEAD_BYTES]) is None and data.isascii():
        try:
            return from_base64(data.decode())
        except ValueError:
            return data  # reading it reports what is wrong
    return data


def from_base64(text: str) -> bytes:
    """Decode base64 of either alphabet, with or without padding, broken into lines, or in a data URL."""
    body = text.strip()
    if body[:5].lower() == "data:":
        head, _, body = body.partition(",")
        if not head.lower().endswith(";base64"):
            raise ValueError(f"a data URL that is not base64 ({head[:40]!r}...); send data:image/png;base64,...")
    lines = unquote(body).split()
    plain = "".join(lines).translate(_STANDARD).rstrip("=")
    try:
        if " " in body and not _is_wrapped(lines):
            raise ValueError("spaces stand where a form has lost its plus signs")
        data = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        raise ValueError(
            f"text that is not base64 ({text[:20]!r}...); send the bytes of the image file in base64"
        ) from None
    if not data:
        raise ValueError("an empty text; send the bytes of the image file in base64")
    return data


def _is_wrapped(lines: list[str]) -> bool:
    """Whether a text was broken into lines of equal length."""
    width = len(lines[0])
    return width % 4 == 0 and all(len(line) == width for line in lines[:-1]) and len(lines[-1]) <= width


def picture(pixels: Array) -> Image.Image:
    """Pixels (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), integers 0 to 255, as gray, RGB or RGBA."""
    what = f"{pixels.dtype} of shape {pixels.shape}"
    form = "send integers 0 to 255 of shape (height, width, 3)"
    if not np.issubdtype(pixels.dtype, np.integer):
        scaled = (
            "; if they are in [0, 1], send (255 * pixels).round().astype('uint8')" if pixels.dtype.kind == "f" else ""
        )
        raise ValueError(f"{what}; {form}{scaled}")
    if pixels.ndim == 3 and pixels.shape[2] not in CHANNELS and pixels.shape[0] in CHANNELS:
        raise ValueError(f"{what}, with channels first; move them last: {form}")
    gray = pixels.ndim == 2 and pixels.shape[1] > max(CHANNELS)  # a row of an RGB image is not a gray image
    if pixels.size == 0 or not (gray or (pixels.ndim == 3 and pixels.shape[2] in CHANNELS)):
        raise ValueError(f"{what}; {form}")
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"values from {pixels.min()} to {pixels.max()}; {form}")
    bands = np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1), dtype=np.uint8)
    return Image.fromarray(bands[..., 0] if bands.shape[2] == 1 else bands, CHANNELS[bands.shape[2]])
