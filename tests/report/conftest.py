"""Fixtures of the tests of reports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.report.atlas import atlas_page
from pipeline.report.compose import compose
from tests.helpers.atlases import clustering, colour_pictures

if TYPE_CHECKING:  # it needs Selenium, and most tests here do not
    from tests.helpers.browser import Page


@pytest.fixture
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP takes seconds to compile; without it the map is a t-SNE."""
    monkeypatch.setitem(sys.modules, "umap", None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from tests.helpers.browser import start_browser

    driver = start_browser()
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def atlas_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An atlas of 120 images in five clusters, on disk."""
    file = tmp_path_factory.mktemp("atlas") / "atlas.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", None)
        given = clustering(120)
    file.write_text(atlas_page(compose(given, colour_pictures)))
    return file.as_uri()


@pytest.fixture
def page(browser: Any, atlas_address: str) -> Iterator[Page]:
    """That atlas in a browser. Nothing may fail in the page, nor be asked of a network, in any test."""
    from tests.helpers.browser import Page

    yield Page(browser, atlas_address)
    assert browser.get_log("browser") == []
