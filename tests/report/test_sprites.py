"""Tiles come back from their sheet where the page looks for them, and sheets keep to their bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.report.sprites import QUALITIES, pack, tile_side
from tests.helpers.atlases import colour_tiles


def test_a_tile_lies_where_its_number_says() -> None:
    tiles = colour_tiles(np.arange(1700))
    sheets = pack(tiles, 10**7)
    assert [sheets.side, sheets.columns, len(sheets.files)] == [48, 40, 2]
    for number in (0, 39, 40, 1599, 1600, 1699):
        sheet, place = divmod(number, sheets.columns**2)
        line, column = divmod(place, sheets.columns)
        picture = np.asarray(Image.open(io.BytesIO(sheets.files[sheet])))
        found = picture[line * 48 : line * 48 + 48, column * 48 : column * 48 + 48].astype(float)
        assert np.abs(found - tiles[number]).mean() < 8
    assert picture.shape == (3 * 48, 40 * 48, 3)


def test_the_quality_gives_way_to_the_number_of_bytes() -> None:
    noise = np.random.default_rng(0).integers(256, size=(200, 48, 48, 3), dtype=np.uint8)
    free, tight, none = (sum(map(len, pack(noise, most).files)) for most in (10**9, 150_000, 0))
    assert free > 300_000
    assert none <= tight < 150_000
    assert len(QUALITIES) > 3


def test_no_tile_makes_no_sheet() -> None:
    assert pack(np.zeros((0, 48, 48, 3), np.uint8), 100).files == []


@pytest.mark.parametrize(("count", "side"), [(10, 160), (2_100, 128), (6_000, 64), (18_000, 48), (10**6, 48)])
def test_few_pictures_are_large(count: int, side: int) -> None:
    assert tile_side(count) == side
