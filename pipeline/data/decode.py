"""Encoded images to uint8 tensors of one size."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.quiet import stderr_into
from pipeline.errors import DecodeError, first_line

PNG_SIGNATURE = b"\x89PNG"
Fit = Literal["stretch", "crop"]


def decode_table(
    table: pa.Table, size: int, fit: Fit = "stretch", interpolation: str = "bilinear"
) -> dict[str, np.ndarray[Any, Any]]:
    """Decode rows of a shard to a block {"image": uint8 (n, size, size, 3), "index": int64 (n,)}; keep other columns.

    `fit` and `interpolation` are those of `decode`.

    Raises
    ------
    DecodeError
        With the index and path of the first image that cannot be decoded.
    """
    index = table.column("index").to_numpy()
    images = np.empty((len(index), size, size, 3), dtype=np.uint8)
    with open(os.devnull, "wb") as null, stderr_into(null.fileno()):  # libjpeg prints the errors that it tolerates
        for row, image in enumerate(table.column("image").to_pylist()):
            try:
                images[row] = decode(image["bytes"], size, fit, interpolation).permute(1, 2, 0).numpy()
            except Exception as error:
                where = f"image {index[row]} ({image['path'] or 'no path'})"
                raise DecodeError(
                    f"{where} cannot be decoded any more: {first_line(error)}; ingest the source again"
                ) from error
    others = {name: table.column(name).to_numpy() for name in table.column_names if name not in ("image", "index")}
    return {"image": images, "index": index, **others}


def aspects(table: pa.Table) -> np.ndarray[Any, Any]:
    """Width / height float32 (n,) of the images of a shard, from their headers: ingest reads them with PIL, too."""
    found = np.empty(len(table), np.float32)
    for row, image in enumerate(table.column("image").to_pylist()):
        with Image.open(io.BytesIO(image["bytes"])) as opened:
            found[row] = opened.width / opened.height
    return found


def decode(data: bytes, size: int, fit: Fit = "stretch", interpolation: str = "bilinear") -> Tensor:
    """One encoded image as RGB uint8 (3, size, size), resized with antialiasing.

    "stretch" does not keep the aspect ratio. "crop" resizes the shorter side and takes the square in the middle.
    """
    return fitted(_decode_any(data), size, fit, interpolation)


def fitted(image: Tensor, size: int, fit: Fit = "stretch", interpolation: str = "bilinear") -> Tensor:
    """Pixels uint8 (3, H, W) as uint8 (3, size, size), as `decode` fits them."""
    height, width = image.shape[1:]
    if (height, width) == (size, size):
        return image
    # Not imported before it is needed: it takes a second, for torch.compile's sake, in every process that decodes.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as T

    target = [size, size] if fit == "stretch" else _cover(height, width, size)
    image = T.resize(image, target, interpolation=InterpolationMode(interpolation), antialias=True)
    return image if image.shape[1:] == (size, size) else T.center_crop(image, [size, size])


def _cover(height: int, width: int, size: int) -> list[int]:
    """Height and width whose shorter side is `size`; the longer one is rounded down, as torchvision does."""
    return [size, int(size * width / height)] if height < width else [int(size * height / width), size]


def _decode_any(data: bytes) -> Tensor:
    """Decode with torchvision, twice as fast on JPEG; with PIL where torchvision does not know the format, and for PNG.

    A PNG with a flipped bit crashes torchvision's decoder, and with it the process, with a segmentation fault.
    """
    if not data.startswith(PNG_SIGNATURE):
        from torchvision.io import ImageReadMode, decode_image

        with contextlib.suppress(RuntimeError, ValueError):  # PIL decides, and explains, what is an image
            return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
