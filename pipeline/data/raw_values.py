"""Raw values of files (many bands, many bits), and how the options turn them into colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from pipeline.data.pixel_options import PixelOptions

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
MAX_BYTES = 2 << 30  # of all bands of an image; a damaged header may ask for any number
NO_DATA_TAG = 42113  # GDAL's; its value is a text
ALPHAS = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
PLAIN = {"MINISWHITE", "MINISBLACK", "RGB"}  # colour models whose bands can be taken as they are
SAMPLES = {"MINISWHITE": 1, "MINISBLACK": 1, "PALETTE": 1, "RGB": 3, "YCBCR": 3, "SEPARATED": 4}  # 4: CMYK

Array = np.ndarray[Any, Any]


class Unreadable(ValueError):
    """An image that cannot be read faithfully; the message says what the file is, and what would help."""


@dataclass(frozen=True)
class RawValues:
    """An image as numbers, with what its file says about them."""

    format: str
    bands: Array
    """(H, W, C), of any type; the last band is the alpha channel if `alpha`."""
    alpha: bool = False
    premultiplied: bool = False
    white_is_zero: bool = False
    no_data: float | None = None
    orientation: int = 1
    pages: bool = False

    def __str__(self) -> str:
        """A description for quarantine reasons, such as: TIFF of 13 bands, uint16."""
        count = self.bands.shape[2] - self.alpha
        noun = ("page" if self.pages else "band") + ("" if count == 1 else "s")
        return f"{self.format} of {count} {noun}{' and alpha' if self.alpha else ''}, {self.bands.dtype.name}"


def channels(raw: RawValues, options: PixelOptions) -> tuple[Array, Array]:
    """The red, green and blue values to show (H, W, 3), and the coverage (H, W) in 0..1, 0 for pixels without a value.

    Raises
    ------
    Unreadable
        Naming the missing options, or the missing band.
    """
    chosen = raw.bands[..., _chosen_bands(raw, options)]
    values = chosen.astype(np.result_type(chosen.dtype, np.float32))
    coverage = np.ones(values.shape[:2], values.dtype)
    if raw.alpha and not options.bands:
        top = 1 if raw.bands.dtype.kind == "f" else np.iinfo(raw.bands.dtype).max
        coverage = np.clip(raw.bands[..., -1].astype(values.dtype) / top, 0, 1)
        if raw.premultiplied:
            values /= np.where(coverage > 0, coverage, 1)[..., None]
    missing = np.isnan(values) if raw.no_data is None else np.isnan(values) | (chosen == raw.no_data)
    coverage[missing.any(2)] = 0
    values[missing] = 0
    return np.broadcast_to(values, (*values.shape[:2], 3)), coverage


def _chosen_bands(raw: RawValues, options: PixelOptions) -> list[int]:
    """Numbers, from 0, of the bands to show."""
    count = raw.bands.shape[2]
    colours = count - raw.alpha
    if raw.bands.dtype.kind == "c":
        raise Unreadable(f"{raw}; complex numbers have no range; save their magnitude")
    needed = [] if options.bands or colours in (1, 3) else ["--bands"]
    if needs_range(raw) and options.range is None:
        needed.append("--range")
    if needed:
        raise Unreadable(f"{raw}; give {' and '.join(needed)}")
    bands = options.bands or range(1, colours + 1)
    if max(bands) > count:
        raise Unreadable(f"{raw}; --bands {','.join(map(str, bands))} asks for band {max(bands)}")
    return [band - 1 for band in bands]


def needs_range(raw: RawValues) -> bool:
    """Whether the values need a range, because their type is not uint8."""
    return raw.bands.dtype != np.uint8


def render(raw: RawValues, options: PixelOptions) -> Image.Image:
    """The values as 8-bit RGB on the background; not turned upright yet."""
    values, coverage = channels(raw, options)
    limits = options.limits if needs_range(raw) else [(0, 255)] * 3
    if limits is None:
        raise ValueError(
            f"the range of {options} has not been measured; take the options from the manifest of an ingest"
        )
    low, high = np.transpose(limits)
    shown = np.clip((values - low) / (high - low) * 255, 0, 255)
    if raw.white_is_zero:
        shown = 255 - shown
    shown += (np.asarray(options.background_rgb) - shown) * (1 - coverage[..., None])
    return Image.fromarray(np.rint(shown).astype(np.uint8))


def check_size(what: str, width: int, height: int, bytes_per_pixel: int = 1) -> None:
    """Refuse sizes that a decompression bomb or a damaged header asks for."""
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{what} of {width} x {height} pixels, more than the {MAX_PIXELS} that are safe to decode")
    if width * height * bytes_per_pixel > MAX_BYTES:
        raise Unreadable(
            f"{what} of {width} x {height} pixels of {bytes_per_pixel} bytes, more than the 2 GiB that are safe"
        )


def read_tiff(data: bytes, options: PixelOptions) -> RawValues | None:
    """The values of a TIFF; None for an ordinary picture of 8 bits or less, which all readers show alike.

    With `--bands`, the bands are taken as stored, whatever colours the file says they are.

    Raises
    ------
    Unreadable
        For several pictures, a raw photo's thumbnail, or a colour model whose bands are not colours.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = _pages(list(file.pages))
        first = pages[0]
        model, samples = getattr(first.photometric, "name", first.photometric), first.samplesperpixel
        alpha = len(first.extrasamples) == 1 and first.extrasamples[0] in ALPHAS
        eight_bit = first.dtype in (np.dtype(np.uint8), np.dtype(bool))
        ordinary = len(pages) == 1 and eight_bit and SAMPLES.get(model) == samples - alpha
        if ordinary and not (options.bands and model in PLAIN):
            return None
        if model not in PLAIN or first.dtype is None:
            raise Unreadable(f"TIFF with colours of type {model}, {first.dtype}; convert it to RGB")
        check_size("TIFF", first.imagewidth, first.imagelength, samples * len(pages) * first.dtype.itemsize)
        return RawValues(
            "TIFF",
            _stacked(pages),
            alpha=alpha,
            premultiplied=alpha and first.extrasamples[0] == tifffile.EXTRASAMPLE.ASSOCALPHA,
            white_is_zero=model == "MINISWHITE",
            no_data=_no_data(first),
            orientation=orientation_of(first),
            pages=len(pages) > 1,
        )


def _pages(pages: Sequence[Any]) -> list[Any]:
    """The pages that are pictures, or bands of one, without the overviews of a pyramid and without masks."""
    if not pages:
        raise Unreadable("TIFF, damaged: its directory cannot be read")
    if pages[0].is_reduced:
        raise Unreadable(
            "TIFF that starts with a thumbnail, as raw photos do (DNG, NEF, ARW); develop it to JPEG or PNG"
        )
    kept = [page for page in pages if not (page.is_reduced or page.is_mask)]
    first = kept[0]
    if len(kept) > 1 and any(page.ndim != 2 or page.shape != first.shape or page.dtype != first.dtype for page in kept):
        raise Unreadable(
            f"TIFF of {len(kept)} pages, the first of {first.samplesperpixel} bands, {first.dtype}; save each as a file"
        )
    return kept


def _stacked(pages: list[Any]) -> Array:
    """The bands (H, W, C), from one page or from a page for each band."""
    if len(pages) > 1:
        bands = np.stack([page.asarray(maxworkers=1) for page in pages], axis=2)
    elif pages[0].axes in ("YX", "YXS", "SYX"):
        bands = pages[0].asarray(maxworkers=1)
        bands = bands[..., None] if bands.ndim == 2 else np.moveaxis(bands, 0, 2) if pages[0].axes == "SYX" else bands
    else:
        raise Unreadable(f"TIFF with axes {pages[0].axes}; save it as two-dimensional pages")
    return bands.astype(np.uint8) * 255 if bands.dtype == bool else bands


def _no_data(page: Any) -> float | None:
    try:
        return float(page.tags[NO_DATA_TAG].value)
    except (KeyError, ValueError):
        return None


def orientation_of(page: Any) -> int:
    """The value of the orientation tag of a page, 1 where there is none."""
    tag = page.tags.get(274)
    return tag.value if tag else 1
