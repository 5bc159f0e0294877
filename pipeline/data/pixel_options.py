"""How files become 8-bit RGB: the options of an ingest, kept in its manifest to read later files the same way."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from PIL import ImageColor
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from pipeline.errors import DataError

Limits = tuple[float, float]


def _one_or_three(bands: tuple[int, ...]) -> tuple[int, ...]:
    if len(bands) not in (1, 3) or min(bands) < 1:
        raise ValueError(f"{bands} are not valid; give one band (gray) or three (red, green, blue), counted from 1")
    return bands


def _ascending(limits: Limits) -> Limits:
    low, high = limits
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{low:g},{high:g} is not a range; give LOW,HIGH: the values shown as black and as white")
    return limits


def _colour(name: str) -> str:
    ImageColor.getrgb(name)  # raises a ValueError that names it
    return name


class PixelOptions(BaseModel):
    """How to read a file's values where the file itself does not say it. The same for all files of a data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bands: Annotated[tuple[int, ...], AfterValidator(_one_or_three)] | None = None
    """Bands to show as red, green and blue, or one as gray; counted from 1, as GDAL and satellites do."""
    range: Annotated[Limits, AfterValidator(_ascending)] | Literal["percentile"] | None = None
    """Values shown as black and white, for files with more than 8 bits; 8-bit files are shown as they are."""
    background: Annotated[str, AfterValidator(_colour)] = "white"
    """What shows through transparent pixels. White, like a page: a shape stored only in the alpha channel is nearly
    always black, and would vanish on black."""
    measured: tuple[Limits, Limits, Limits] | None = None
    """The range of each channel that ingest measured, if `range` is "percentile"."""

    @property
    def requested(self) -> PixelOptions:
        """The options as the user gave them."""
        return self.model_copy(update={"measured": None})

    @property
    def limits(self) -> tuple[Limits, Limits, Limits] | None:
        """The values shown as black and white in red, green and blue; None where they are not known."""
        return (self.range, self.range, self.range) if isinstance(self.range, tuple) else self.measured

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """The background as red, green and blue in 0..255."""
        red, green, blue = ImageColor.getrgb(self.background)[:3]
        return red, green, blue

    def __str__(self) -> str:
        """The options as typed on the command line."""
        words = [f"--bands {','.join(map(str, self.bands))}"] if self.bands else []
        if self.range:
            words.append(f"--range {self.range if isinstance(self.range, str) else '{:g},{:g}'.format(*self.range)}")
        return " ".join([*words, f"--background {self.background}"])


AS_THEY_ARE = PixelOptions()
"""No bands chosen, no range: files that need either are quarantined."""


def parse_pixel_options(bands: str | None, range_: str | None, background: str) -> PixelOptions:
    """The options as typed: "4,3,2", "0,3000" or "percentile", "white" or "#rrggbb".

    Raises
    ------
    DataError
        Naming the option, the bad value and its right form.
    """
    try:
        numbers = tuple(map(int, bands.split(","))) if bands is not None else None
    except ValueError:
        raise DataError(f"--bands {bands!r} is not a list of numbers; give one or three, as in --bands 4,3,2") from None
    limits: object = range_
    if range_ not in (None, "percentile"):
        try:
            low, high = map(float, str(range_).split(","))
        except ValueError:
            raise DataError(f"--range {range_!r} is not LOW,HIGH; give --range 0,3000, or --range percentile") from None
        limits = (low, high)
    try:
        return PixelOptions.model_validate({"bands": numbers, "range": limits, "background": background})
    except ValidationError as error:
        problem = error.errors()[0]
        raise DataError(f"--{problem['loc'][0]}: {problem['msg'].removeprefix('Value error, ')}") from None
