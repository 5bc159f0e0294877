"""Decoding against PIL, format by format, and what is damaged after ingest."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from pipeline.data.decode import aspects, decode, decode_table
from pipeline.data.shards import IMAGE_TYPE
from pipeline.errors import DecodeError

SIZE = 24


def picture(mode: str = "RGB", width: int = SIZE, height: int = SIZE) -> Image.Image:
    """A smooth gradient, in which a lossy format changes little, with every channel of the mode in use."""
    y, x = np.mgrid[0:height, 0:width]
    channels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=2)
    image = Image.fromarray(channels.astype(np.uint8))
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray((x * 255 // width).astype(np.uint8)))
        return image
    return image.convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pil(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def pixels(data: bytes, size: int = SIZE) -> np.ndarray:
    image = decode(data, size)
    assert image.shape == (3, size, size)
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


def table(images: list[bytes], paths: list[str | None] | None = None) -> pa.Table:
    rows = [{"bytes": data, "path": path} for data, path in zip(images, paths or [None] * len(images), strict=True)]
    return pa.table({"image": pa.array(rows, IMAGE_TYPE), "index": np.arange(100, 100 + len(rows))})


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("PNG", "1", {}),
        ("PNG", "P", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "LA", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {"lossless": True, "exact": True}),
        ("TIFF", "RGB", {}),
        ("TIFF", "L", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "RGBA", {}),
        ("TIFF", "CMYK", {}),
    ],
)
def test_lossless_formats_equal_pil(kind: str, mode: str, options: dict[str, object]) -> None:
    data = saved(picture(mode), kind, **options)
    np.testing.assert_array_equal(pixels(data), by_pil(data))


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("WEBP", "RGB", {"quality": 90}),
    ],
)
def test_lossy_formats_equal_pil_to_rounding(kind: str, mode: str, options: dict[str, object]) -> None:
    """Decoders may round differently; a wrong channel order or an inverted CMYK would be off by a hundred."""
    data = saved(picture(mode), kind, **options)
    assert np.abs(pixels(data).astype(int) - by_pil(data)).max() <= 4


def test_a_transparent_palette_keeps_its_colours() -> None:
    data = saved(picture("P"), "PNG", transparency=0)
    np.testing.assert_array_equal(pixels(data), by_pil(data))


@pytest.mark.parametrize(("width", "height", "size"), [(60, 40, 16), (40, 60, 64), (16, 64, 16), (1, 1, 8)])
def test_other_sizes_are_resized_with_antialiasing(width: int, height: int, size: int) -> None:
    data = saved(picture(width=width, height=height), "PNG")
    expected = tv.resize(tv.pil_to_tensor(picture(width=width, height=height)), [size, size], antialias=True)
    np.testing.assert_array_equal(pixels(data, size), expected.permute(1, 2, 0).numpy())


def test_a_block_keeps_rows_indices_and_types() -> None:
    images = [saved(picture(mode), kind) for mode, kind in (("RGB", "PNG"), ("L", "TIFF"), ("RGB", "WEBP"))]
    block = decode_table(table(images), SIZE)
    assert block["image"].shape == (3, SIZE, SIZE, 3)
    assert block["image"].dtype == np.uint8
    assert block["index"].tolist() == [100, 101, 102]
    for row, data in zip(block["image"], images, strict=True):
        np.testing.assert_array_equal(row, pixels(data))


def test_an_empty_block_is_empty() -> None:
    block = decode_table(table([]), SIZE)
    assert block["image"].shape == (0, SIZE, SIZE, 3)
    assert len(block["index"]) == 0


def test_chunks_of_a_table_are_one_block() -> None:
    data = [saved(picture(), "PNG"), saved(picture("L"), "PNG")]
    parts = table(data)
    block = decode_table(pa.concat_tables([parts.slice(1), parts.slice(0, 1)]), SIZE)
    assert block["index"].tolist() == [101, 100]
    np.testing.assert_array_equal(block["image"][1], by_pil(data[0]))


def test_the_shape_of_an_image_is_width_by_height() -> None:
    images = [saved(picture(width=40, height=30), "JPEG"), saved(picture(width=10, height=20), "PNG")]
    assert aspects(table(images)).tolist() == pytest.approx([4 / 3, 0.5])


def wrong_checksum(data: bytes) -> bytes:
    """A PNG with another CRC for its first IDAT chunk."""
    start = data.index(b"IDAT")
    end = start + 4 + struct.unpack(">I", data[start - 4 : start])[0]
    return data[:end] + bytes(4) + data[end + 4 :]


def flipped_bit(data: bytes) -> bytes:
    """A PNG with a bit of its compressed pixels flipped."""
    middle = data.index(b"IDAT") + 60
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def test_a_png_with_a_wrong_checksum_is_read_as_at_ingest() -> None:
    """PIL takes it; torchvision's decoder would end the process."""
    np.testing.assert_array_equal(pixels(wrong_checksum(saved(picture(), "PNG"))), by_pil(saved(picture(), "PNG")))


@pytest.mark.parametrize(
    "damaged",
    [
        saved(picture(), "JPEG", quality=95)[:-400],
        saved(picture(), "PNG")[:-60],
        flipped_bit(saved(picture(), "PNG")),
        saved(picture(), "WEBP")[:-40],
        saved(picture(), "TIFF")[:-200],
        b"no image",
        b"",
    ],
    ids=["jpeg", "png", "flipped", "webp", "tiff", "text", "empty"],
)
def test_damage_after_ingest_names_index_and_path(damaged: bytes) -> None:
    good = saved(picture(), "PNG")
    with pytest.raises(DecodeError, match=r"image 102 \(cat/3.png\) cannot be decoded .*ingest the source again"):
        decode_table(table([good, good, damaged, good], ["1", "2", "cat/3.png", "4"]), SIZE)
    with pytest.raises(DecodeError, match=r"image 100 \(no path\)"):
        decode_table(table([damaged]), SIZE)


def test_an_image_of_the_right_size_is_decoded_without_torchvision() -> None:
    """Its import takes a second, in every process that decodes."""
    script = (
        "import io, sys; from PIL import Image; from pipeline.data.decode import decode; data = io.BytesIO(); "
        "Image.new('RGB', (4, 4)).save(data, 'PNG'); "
        "print(tuple(decode(data.getvalue(), 4).shape), 'torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "(3, 4, 4) False\n", done.stderr
