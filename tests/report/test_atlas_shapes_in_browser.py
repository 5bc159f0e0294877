"""Pictures that are longer than wide, or wider than long: cards show their middle, and an opened image all of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.report.atlas import atlas_page
from pipeline.report.compose import compose
from pipeline.report.sprites import Pictures

pytest.importorskip("selenium")

from tests.helpers.atlases import clustering
from tests.helpers.browser import Page, needs_browser

pytestmark = needs_browser
ASPECTS = (1.0, 4 / 3, 2.0, 4.0, 1 / 2, 1 / 4)  # of image i: ASPECTS[i % 6]
RED, GREEN, BLUE = (220, 40, 40), (40, 180, 40), (40, 40, 220)


def striped_pictures(chosen: Any) -> Pictures:
    """Green pictures whose ends are red and blue: the left and right eighth, or the upper and lower one."""
    aspects = np.array([ASPECTS[index % len(ASPECTS)] for index in chosen], np.float32)
    tiles = np.full((len(chosen), 64, 64, 3), GREEN, np.uint8)
    tiles[:, :, :8], tiles[:, :, -8:] = RED, BLUE
    tiles[aspects < 1] = tiles[aspects < 1].swapaxes(1, 2)
    return Pictures(tiles, aspects)


@pytest.fixture(scope="module")
def atlas_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An atlas without a map of 60 images in six shapes."""
    file = tmp_path_factory.mktemp("shapes") / "atlas.html"
    file.write_text(atlas_page(compose(clustering(60, mapped=None), striped_pictures)))
    return file.as_uri()


def row_of(page: Page, aspect: float) -> int:
    """A row whose picture has this shape, in the middle of a sheet."""
    return page.driver.execute_script(
        "return aspects.findIndex((a, row) => row > 10 && Math.abs(a - arguments[0]) < 1e-3)", aspect
    )


def colours(element: Any) -> list[str]:
    """The colours along the middle line of an element, as they are on the screen: across, or down a high one."""
    seen = np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")).astype(int)
    line = seen[len(seen) // 2] if seen.shape[1] >= seen.shape[0] else seen[:, seen.shape[1] // 2]
    nearest = [np.abs(line - colour).sum(axis=1) for colour in (RED, GREEN, BLUE)]
    names = ["rgb"[place] for place in np.argmin(nearest, axis=0)]
    return [name for name, before in zip(names, [None, *names], strict=False) if name != before]


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("width", [1200, 360])
def test_an_opened_image_is_whole_and_has_its_shape(page: Page, aspect: float, width: int) -> None:
    page.open(width=width, touch=width < 500)
    page.driver.execute_script("openLightbox(arguments[0])", row_of(page, aspect))
    opened = page.one("#lightbox .huge")
    assert colours(opened) == ["r", "g", "b"]
    assert opened.size["width"] / opened.size["height"] == pytest.approx(aspect, rel=0.02)
    assert max(opened.size.values()) <= 400
    assert page.driver.execute_script("return lightbox.scrollWidth <= lightbox.clientWidth")


def test_a_card_of_a_long_picture_shows_its_middle_and_says_cropped(page: Page) -> None:
    page.open("search=photos")
    said = {}
    for aspect in ASPECTS:
        card = page.one(f'#view-search .shot[data-row="{row_of(page, aspect)}"]')
        page.driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", card)
        assert card.size["width"] == card.size["height"]
        assert colours(card) == (["g"] if max(aspect, 1 / aspect) >= 4 / 3 else ["r", "g", "b"])
        said[aspect] = "cropped" in card.text
        assert card.get_attribute("aria-label").endswith(", cropped") == said[aspect]
    assert said == {1.0: False, 4 / 3: False, 2.0: True, 4.0: True, 1 / 2: True, 1 / 4: True}


def test_the_tip_shows_the_whole_picture(page: Page) -> None:
    page.open()
    page.driver.execute_script("showTip(imageTip(arguments[0]), { clientX: 0, clientY: 0 })", row_of(page, 4.0))
    tip = page.one("#tip .large")
    assert colours(tip) == ["r", "g", "b"]
    assert tip.size["width"] / tip.size["height"] == pytest.approx(4, rel=0.05)


def test_the_map_draws_the_middle(page: Page) -> None:
    page.open()
    for aspect, width, height in [(4.0, 16, 64), (1 / 2, 64, 32), (1.0, 64, 64)]:
        box = page.driver.execute_script(
            """const [row, done] = arguments, image = sheetImage(0, () => {});
               let given; const pen = { fillRect() {}, drawImage(...all) { given = all.slice(1); } };
               drawPicture(pen, 48, [row, 100, 100, "red"]);
               const tile = tileOf(row);
               return [given[0] - tile.column * 64, given[1] - tile.line * 64, ...given.slice(2)];""",
            row_of(page, aspect),
        )
        assert box == [(64 - width) / 2, (64 - height) / 2, width, height, 76, 76, 48, 48]
