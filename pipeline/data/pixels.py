"""Decodes bytes of any image format to 8-bit RGB pixels, as a viewer shows them.

File types are detected from content. A file that every decoder reads the same way is marked `as_stored`, so that ingest
keeps its bytes; of any other file only the pixels are kept, or it is `Unreadable` and the reason says why.
"""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
from typing import NamedTuple

import imagecodecs
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from pipeline.data.formats import HEAD_BYTES, describe, image_format
from pipeline.data.pixel_options import PixelOptions
from pipeline.data.quiet import stderr_into
from pipeline.data.raw_values import Array, RawValues, Unreadable, channels, check_size, needs_range, read_tiff, render
from pipeline.errors import first_line, how_to_install

PILLOW_NAMES = {"WebP": "WEBP", "PNM": "PPM", "HEIC": "HEIF", "JPEG 2000": "JPEG2000"}  # where they differ from ours
BY_PILLOW = {"JPEG", "PNG", "WebP", "TIFF", "GIF", "BMP", "PNM", "AVIF", "HEIC", "JPEG 2000"}
STORED = {"JPEG", "PNG", "WebP", "TIFF"}  # what the decoder in training reads
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
FIRST_OF_MANY = ("MPO", "TIFF")  # a phone's JPEG with extras that no viewer shows; and `read_tiff` counts pages better
PNM_TOP = re.compile(rb"P[2356]\s+(?:(?:#[^\n]*\n\s*)*\d+\s+){2}(?:#[^\n]*\n\s*)*(\d+)\s")  # the value of white

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # the reasons say what it logs about damaged files


class Picture(NamedTuple):
    """An image as a viewer shows it."""

    image: Image.Image
    """Of mode RGB."""
    as_stored: bool
    """Whether every decoder, also the one in training, reads exactly this image from the original bytes."""


def read_picture(data: bytes, options: PixelOptions) -> Picture:
    """The pixels of an encoded image: upright, on the background, with bands and range from the options.

    Raises
    ------
    Unreadable
        Saying what the file is, and what would help.
    """
    opened = _open(data, options)
    if isinstance(opened, Picture):
        return opened
    return Picture(_turned(render(opened, options), opened.orientation), as_stored=False)


def stored_bytes(data: bytes, options: PixelOptions) -> bytes:
    """An encoded image as an ingest stores it: as it is, or as PNG if not every decoder reads it the same way.

    Raises
    ------
    Unreadable
        Saying what the file is, and what would help.
    """
    picture = read_picture(data, options)
    return data if picture.as_stored else png(picture.image)


def shown(image: Image.Image, options: PixelOptions) -> Image.Image:
    """The RGB pixels of an image that Pillow has opened, as they would be read from its file.

    Raises
    ------
    Unreadable
        Saying what the image is, and what would help.
    """
    name = image.format or "Pillow image"
    _check_frames(name, image)
    if image.mode in DEEP_MODES or any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        raise Unreadable(f"{name} of more than 8 bits (mode {image.mode}); send the bytes of its file")
    opened = _picture(name, image, options)
    return opened.image if isinstance(opened, Picture) else render(opened, options)


def png(image: Image.Image) -> bytes:
    """The image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def read_values(data: bytes, options: PixelOptions) -> Array | None:
    """The red, green and blue values (N, 3) of the pixels that a range applies to; None for an 8-bit image."""
    opened = _open(data, options)
    if isinstance(opened, Picture) or not needs_range(opened):
        return None
    values, coverage = channels(opened, options)
    return values[coverage > 0]


def _open(data: bytes, options: PixelOptions) -> Picture | RawValues:
    head = data[:HEAD_BYTES]
    name = image_format(head)
    if name is None:
        raise Unreadable(describe(head))
    try:
        if name == "JPEG XL":
            return _open_jpeg_xl(data, options)
        if name == "TIFF":
            return read_tiff(data, options) or _open_tiff_picture(data, options)
        if name in BY_PILLOW:
            return _open_by_pillow(name, data, options)
    except Unreadable:
        raise
    except Exception as error:  # decoders raise many kinds of errors on damaged bytes
        raise Unreadable(f"{name}, damaged: {first_line(error)}") from error
    raise Unreadable(f"{name}, which is not supported; convert it to PNG, or to TIFF if it has more than 8 bits")


def _open_by_pillow(name: str, data: bytes, options: PixelOptions) -> Picture | RawValues:
    image = _pillow_image(name, data)
    if name == "PNG" and data[24] == 16:  # bits per sample, from the header; Pillow keeps the upper 8 of colours
        bands = _three_axes(imagecodecs.png_decode(data))
        return RawValues(name, bands, alpha=bands.shape[2] in (2, 4), orientation=_orientation(image))
    if name == "JPEG 2000" and (bands := _three_axes(imagecodecs.jpeg2k_decode(data))).dtype != np.uint8:
        return RawValues(name, bands)
    top = PNM_TOP.match(data)
    if image.mode in DEEP_MODES or (top and int(top[1]) > 255):
        raise Unreadable(f"{name} of more than 8 bits; convert it to TIFF or PNG and give --range")
    return _picture(name, image, options)


def _pillow_image(name: str, data: bytes) -> Image.Image:
    """A single still image of a safe size, with correct checksums; not decoded yet."""
    _prepare_plugin(name)
    formats = (PILLOW_NAMES.get(name, name),)
    try:
        if name == "PNG":
            with Image.open(io.BytesIO(data), formats=formats) as image:
                image.verify()
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:  # its message holds a memory address, which would differ from run to run
        raise Unreadable(f"{name}, damaged: its header cannot be read") from None
    except Image.DecompressionBombError:
        raise Unreadable(
            f"{name} that may be a decompression bomb: it has more than twice as many pixels as are safe to decode"
        ) from None
    check_size(name, image.width, image.height)
    _check_frames(name, image)
    return image


def _check_frames(name: str, image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in FIRST_OF_MANY:
        raise Unreadable(f"{name} of {frames} frames; save each as a file")


def _prepare_plugin(name: str) -> None:
    if name == "HEIC":
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise Unreadable(f"HEIC, which needs pillow-heif; {how_to_install('formats')}") from None
        register_heif_opener()
    elif name == "AVIF" and not features.check("avif"):
        raise Unreadable("AVIF, but this Pillow was built without an AVIF decoder; install Pillow from its wheels")


def _open_tiff_picture(data: bytes, options: PixelOptions) -> Picture | RawValues:
    """An ordinary TIFF. libtiff's warnings are hidden, and a file that causes some is not kept as it is."""
    with tempfile.TemporaryFile() as printed:
        with stderr_into(printed.fileno()):
            opened = _picture("TIFF", _pillow_image("TIFF", data), options)
        stumbled = os.fstat(printed.fileno()).st_size > 0
    return opened._replace(as_stored=False) if stumbled and isinstance(opened, Picture) else opened


def _open_jpeg_xl(data: bytes, options: PixelOptions) -> Picture | RawValues:
    decoded = imagecodecs.jpegxl_decode(data)  # turns it upright itself
    if decoded.ndim == 4:
        raise Unreadable(f"JPEG XL of {len(decoded)} frames; save each as a file")
    bands = _three_axes(decoded)
    raw = RawValues("JPEG XL", bands, alpha=bands.shape[2] in (2, 4))
    return raw if needs_range(raw) or options.bands else Picture(render(raw, options), as_stored=False)


def _three_axes(bands: Array) -> Array:
    return bands[..., None] if bands.ndim == 2 else bands


def _picture(name: str, image: Image.Image, options: PixelOptions) -> Picture | RawValues:
    """An 8-bit image, or its bands if the options choose among them."""
    orientation = _orientation(image)
    image.load()
    upright = ImageOps.exif_transpose(image) if orientation != 1 else image  # Pillow has turned a TIFF by now
    if options.bands:
        native = upright if upright.mode in ("L", "LA", "RGB", "RGBA") else upright.convert("RGB")
        return RawValues(name, _three_axes(np.asarray(native)))
    plain = name in STORED and orientation == 1 and upright.mode in ("1", "L", "P", "RGB", "LA", "RGBA")
    if not upright.has_transparency_data:
        return Picture(upright if upright.mode == "RGB" else upright.convert("RGB"), plain)
    cover = upright.convert("RGBA")
    if cover.getchannel("A").getextrema() == (255, 255):
        return Picture(cover.convert("RGB"), plain)
    page = Image.new("RGBA", cover.size, options.background_rgb)
    return Picture(Image.alpha_composite(page, cover).convert("RGB"), as_stored=False)


def _orientation(image: Image.Image) -> int:
    """1 to 8, from the EXIF data; damaged EXIF data are ignored, as viewers do."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[ExifTags.Base.Orientation] = orientation  # where Pillow looks for it
    return ImageOps.exif_transpose(image)
