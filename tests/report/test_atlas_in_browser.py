"""The atlas in headless Chromium, from disk: clicks, hovers, keys, and a phone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from pipeline.report.atlas import rename_clusters
from pipeline.runs.names import set_names
from pipeline.training.state import LOSSES
from tests.helpers.browser import Page, needs_browser

pytestmark = needs_browser


def test_a_cluster_opens_by_a_click_and_has_both_contact_sheets(page: Page) -> None:
    page.open()
    assert len(page.all("#overview .cell")) == 5
    page.one('#overview [data-cluster="3"]').click()
    page.wait("return !document.getElementById('view-cluster').hidden")
    assert page.view == "cluster-3"
    assert page.one("#view-cluster h2").text.startswith("dogs")
    typical, border = page.all("#view-cluster > .sheet")
    assert len(typical.find_elements(By.CSS_SELECTOR, ".shot")) == 16
    assert "→ " in border.find_element(By.CSS_SELECTOR, ".caption").text
    similarities = [float(caption.text) for caption in typical.find_elements(By.CSS_SELECTOR, ".caption")]
    assert similarities == sorted(similarities, reverse=True)
    assert len(page.all("#view-cluster .near")) == 4
    assert [card.get_attribute("data-cluster") for card in page.all("#view-cluster .card")] == ["1"]  # also `dogs`
    page.driver.back()
    page.wait("return !document.getElementById('view-clusters').hidden")


def test_names_are_text(page: Page) -> None:
    page.open("cluster-2")
    assert page.one("#view-cluster h2").text.startswith("<script>alert(1)</script>")
    assert page.driver.title == "<script>alert(1)</script> (2) | run <b> | atlas"


def test_an_image_opens_and_leads_to_what_is_like_it(page: Page) -> None:
    page.open("cluster-0")
    page.one("#view-cluster .shot").click()
    page.wait("return document.getElementById('lightbox').open")
    first = page.one("#lightbox .about .path").text
    assert first.startswith("photos/")
    page.key(Keys.ARROW_RIGHT)
    assert page.one("#lightbox .about .path").text != first
    assert len(page.all("#lightbox .sheet .shot")) == 8
    page.key(Keys.ESCAPE)
    page.wait("return !document.getElementById('lightbox').open")
    assert page.view == "cluster-0"  # Esc closed the image only


def test_the_keyboard_goes_from_cluster_to_cluster(page: Page) -> None:
    page.open("cluster-0")
    page.key(Keys.ARROW_RIGHT)
    page.wait("return location.hash !== '#cluster-0'")
    page.key(Keys.ARROW_LEFT)
    page.wait("return location.hash === '#cluster-0'")
    page.key(Keys.ESCAPE)
    page.wait("return location.hash === '#clusters'")
    page.driver.execute_script("document.querySelector('#overview [tabindex=\"0\"]').focus()")
    before = page.driver.switch_to.active_element.get_attribute("data-cluster")
    page.key(Keys.ARROW_RIGHT)
    after = page.driver.switch_to.active_element
    assert after.get_attribute("data-cluster") not in (None, before)
    page.key(Keys.ENTER)
    page.wait(f"return location.hash === '#cluster-{after.get_attribute('data-cluster')}'")


def test_keys_go_along_a_row_of_cards_and_not_beyond(page: Page) -> None:
    page.open(width=1500)
    assert (
        page.driver.execute_script("return new Set(Array.from(byId('cards').children, (c) => c.offsetTop)).size") == 1
    )
    first, second, *_ = page.all("#cards .card")
    for key, focused in [(Keys.ARROW_DOWN, second), (Keys.ARROW_UP, second), (Keys.ARROW_LEFT, first)]:
        page.driver.execute_script("arguments[0].focus()", second)
        page.key(key)
        assert page.driver.switch_to.active_element == focused


def test_search_finds_paths_names_and_classes(page: Page) -> None:
    page.open()
    page.key("/")
    page.key("photos/1/0007")
    page.wait("return document.querySelectorAll('#view-search .shot').length === 1")
    assert page.one("#view-search .shot").get_attribute("aria-label").startswith("photos/1/0007.png")
    page.one("#query").clear()
    page.one("#query").send_keys("bee")
    page.wait("return document.querySelectorAll('#view-search .shot').length > 1")
    assert all("class bee" in shot.get_attribute("aria-label") for shot in page.all("#view-search .shot"))
    page.one("#query").clear()
    page.one("#query").send_keys("dogs")
    page.wait("return document.querySelectorAll('#view-search .card').length === 2")
    page.one("#query").send_keys("nothing")
    page.wait("return document.querySelector('#view-search .empty')")
    page.key(Keys.ESCAPE)
    page.wait("return location.hash === '#clusters'")


def place_on_map(page: Page) -> tuple[int, str, int, int]:
    """An image whose picture is drawn: its row, path, and place relative to the middle of the map."""
    page.wait("return map.drawn.length")
    row, x, y = page.driver.execute_script(
        "const [row, x, y] = map.drawn[0]; return [row, Math.round(x - map.width / 2), Math.round(y - map.height / 2)]"
    )
    return row, page.driver.execute_script("return fileName(arguments[0])", row), x, y


def test_the_map_shows_an_image_on_hover_and_opens_it_by_a_click(page: Page) -> None:
    page.open("map")
    canvas = page.one("#map-canvas")
    _, path, x, y = place_on_map(page)
    ActionChains(page.driver).move_to_element_with_offset(canvas, x, y).perform()
    page.wait("return !document.getElementById('tip').hidden")
    assert page.one("#tip .path").text == path
    assert "url(" in page.one("#tip .picture").value_of_css_property("background-image")
    ActionChains(page.driver).click().perform()
    page.wait("return document.getElementById('lightbox').open")
    assert page.one("#lightbox .about .path").text == path


def test_enter_on_a_map_without_images_opens_nothing(page: Page) -> None:
    page.open("map")
    page.driver.execute_script("rowOnMap = () => -1; byId('map-canvas').focus()")
    page.key(Keys.ENTER)
    assert not page.driver.execute_script("return lightbox.open")


def test_the_map_zooms_and_moves_by_wheel_and_keys(page: Page) -> None:
    page.open("map")
    ActionChains(page.driver).scroll_by_amount(0, 1).perform()
    page.driver.execute_script("canvas.focus()")
    page.key("+")
    page.key(Keys.ARROW_LEFT)
    assert page.driver.execute_script("return map.zoom") == pytest.approx(1.4)
    assert page.driver.execute_script("return map.x") < 0
    page.key("0")
    assert page.driver.execute_script("return [map.zoom, map.x]") == [1, 0]
    page.one("#map-legend button").click()
    assert page.driver.execute_script("return onMap.filter(map.only).length") == 24


def test_the_map_on_a_phone_shows_an_image_by_a_tap_and_opens_it_by_the_next(page: Page) -> None:
    page.open("map", width=390, touch=True)
    _, path, x, y = place_on_map(page)
    box = page.driver.execute_script(
        "const b = canvas.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]"
    )
    point = (box[0] + box[2] / 2 + x, box[1] + box[3] / 2 + y)
    page.tap(*point)
    page.wait("return !document.getElementById('tip').hidden")
    assert page.one("#tip .path").text == path
    assert not page.driver.execute_script("return lightbox.open")
    page.tap(*point)
    page.wait("return lightbox.open")
    assert page.one("#lightbox .about .path").text == path


@pytest.mark.parametrize("view", ["clusters", "cluster-1", "map", "classes", "training", "duplicates", "outliers"])
def test_no_view_is_wider_than_a_small_phone(page: Page, view: str) -> None:
    page.open(view, width=360, touch=True)
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
    shown = page.driver.execute_script("return VIEWS.filter((name) => !byId(`view-${name}`).hidden)")
    assert shown == [view.split("-")[0]]


def test_the_matrix_says_what_a_cell_means_and_the_table_says_it_too(page: Page) -> None:
    page.open("classes")
    matrix = page.one("#matrix")
    side, head = page.driver.execute_script("return [matrix.cell, matrix.head]")
    left, top = -matrix.size["width"] / 2, -matrix.size["height"] / 2
    ActionChains(page.driver).move_to_element_with_offset(
        matrix, int(left + side / 2), int(top + head + side / 2)
    ).perform()
    page.wait("return byId('matrix-readout').textContent")
    label, count = page.driver.execute_script("return [matrix.labels[0], countAt(matrix.labels[0], matrix.columns[0])]")
    assert label == 0
    assert page.one("#matrix-readout").text.startswith("ape in ")
    assert f": {count} images" in page.one("#matrix-readout").text
    assert [cell.text for cell in page.all("#class-table tbody th")] == ["ape", "bee", "class 2"]

    number, size = page.driver.execute_script("return [matrix.columns[0].number, matrix.columns[0].size]")
    assert str(page.one("#class-table .chip").get_attribute("href")).endswith("/class-0")
    ActionChains(page.driver).double_click().perform()  # where nothing can hover
    page.wait(f"return location.hash === '#cluster-{number}/class-0'")
    assert page.one("#member-filter").get_attribute("value") == "class-0"
    assert f"{count} of {size}" in page.one("#view-cluster").text


def test_a_tap_on_the_matrix_says_what_the_pointer_would(page: Page) -> None:
    page.open("classes", width=390, touch=True)
    x, y, count = page.driver.execute_script(
        """const box = byId("matrix").getBoundingClientRect();
           return [box.left + 1.5 * matrix.cell, box.top + matrix.head + 0.5 * matrix.cell,
                   countAt(matrix.labels[0], matrix.columns[1])];"""
    )
    assert page.one("#matrix-readout").text == ""
    page.tap(x, y)
    page.wait("return byId('matrix-readout').textContent")
    assert page.one("#matrix-readout").text.startswith("ape in ")
    assert f": {count} images" in page.one("#matrix-readout").text
    assert page.view == "classes"  # a click of the mouse would have opened the cluster


def test_training_has_alarms_curves_and_the_ledger(page: Page) -> None:
    page.open()
    page.one("#alarm-banner a").click()
    page.wait("return location.hash === '#training'")
    assert page.one(".alarms li").text == "epoch 1 · collapse size_entropy is <low>"
    assert [panel.text for panel in page.all(".panel strong")] == ["Losses", "Scores"]
    assert [entry.text.split("\n")[0] for entry in page.all("#ledger li")] == ["estep", "step", "other"]
    assert page.one("#ledger .hint").text == "10.5 s in all"
    panel = page.all(".panel svg")[1]
    ActionChains(page.driver).move_to_element_with_offset(panel, -panel.size["width"] // 2 + 60, 0).perform()
    page.wait("return document.querySelectorAll('.panel .hint')[1].textContent === 'epoch 0'")
    assert page.all(".panel")[1].find_element(By.CSS_SELECTOR, "b").text == "0.3"


def test_outliers_and_duplicates_are_lists(page: Page) -> None:
    page.open("outliers")
    scores = [float(caption.text) for caption in page.all("#view-outliers .caption")]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == page.driver.execute_script("return atlas.outliers.length") > 0
    page.open("duplicates")
    assert len(page.all("#view-duplicates .pair")) == page.driver.execute_script("return atlas.duplicates.length")


def test_the_outliers_of_a_cluster_are_filtered_and_in_order(page: Page) -> None:
    page.open("clusters")
    number, count = page.driver.execute_script(
        "const c = clusters.find(({ outliers }) => outliers > 0); return [c.number, c.outliers]"
    )
    page.driver.execute_script(f"go('cluster-{number}')")
    page.one(f'#view-cluster .facts a[href="#cluster-{number}/outliers"]').click()
    page.wait("return byId('member-filter').value === 'outliers'")
    page.one('#member-order [value="outlier"]').click()
    scores = [float(caption.text) for caption in page.all("#members .caption")]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= 3.5
    assert len(scores) == count
    assert page.one("#members .hint").text == f"{count} of 24"
    page.one('#member-filter [value=""]').click()
    page.wait("return document.querySelectorAll('#members .shot').length === 24")


VIEWS = ["clusters", "cluster-1", "map", "classes", "training", "duplicates", "outliers", "search=photos/1/0007"]
NAMES = ["", "dogs (1)", "Map", "Classes", "Training", "Duplicates", "Outliers", "Search: photos/1/0007"]


@pytest.mark.parametrize(("view", "name"), list(zip(VIEWS, NAMES, strict=True)))
def test_the_title_of_the_page_names_the_view_and_only_that_is_announced(page: Page, view: str, name: str) -> None:
    page.open(view)
    assert page.driver.title == (f"{name} | run <b> | atlas" if name else "run <b> | atlas")
    spoken = page.driver.execute_script(
        """const live = "[aria-live], [role=status], [role=alert], [role=log], output";
           return Array.from(document.querySelectorAll(live)).filter((e) => e.textContent.trim() && e.checkVisibility())
             .map((e) => e.textContent);"""
    )
    counts = ["24 of 24"] if view == "cluster-1" else []
    assert spoken == [*counts, name or "Clusters"]


@pytest.fixture
def frame(page: Page, tmp_path: Path) -> Page:
    """The page as MLflow shows an artifact: a blob in a frame that may run scripts and nothing else."""
    page.open_in_frame(tmp_path / "host.html")
    return page


def test_links_keys_and_back_work_in_the_frame_of_a_viewer(frame: Page) -> None:
    def shown(view: str) -> None:
        frame.wait(f"return !document.getElementById('view-{view}').hidden")

    frame.one('#overview [data-cluster="3"]').click()
    shown("cluster")
    frame.key(Keys.ESCAPE)
    shown("clusters")
    for view in ("map", "classes", "training", "duplicates", "outliers"):
        frame.one(f'nav a[href="#{view}"]').click()
        shown(view)
    frame.driver.execute_script("history.back()")
    shown("duplicates")
    frame.one("#query").send_keys("dogs")
    shown("search")
    frame.one("#view-search .card").click()
    shown("cluster")
    frame.one("#view-cluster .shot").click()
    frame.wait("return document.getElementById('lightbox').open")
    frame.one('#lightbox a[href^="#map"]').click()
    shown("map")


def watch_pictures(page: Page) -> None:
    """Have `drawn` hold the pictures that the canvas was given last: [row, x, y, side] of each, by its own calls."""
    page.driver.execute_script(
        """window.drawn = [];
        const pen = CanvasRenderingContext2D.prototype, [clear, draw] = [pen.clearRect, pen.drawImage];
        pen.clearRect = function (...box) { window.drawn = []; clear.apply(this, box); };
        pen.drawImage = function (image, left, top, w, h, x, y, side, ...rest) {
          const sheet = Array.from(sheetImages).find(([, other]) => other === image)[0];
          const place = (top / sheets.side) * sheets.columns + left / sheets.side;
          window.drawn.push([sheet * perSheet + place, x, y, side]);
          draw.call(this, image, left, top, w, h, x, y, side, ...rest);
        };
        drawMap();"""
    )
    page.wait("drawMap(); return drawn.length")


@pytest.mark.parametrize("zoom", [1, 4, 8])
def test_a_click_anywhere_on_a_picture_of_the_map_opens_it(page: Page, zoom: int) -> None:
    page.open("map")
    watch_pictures(page)
    page.driver.execute_script("zoomMap(arguments[0], ...placeOf(onMap[0])); drawMap()", zoom)
    width, height = page.driver.execute_script("return [map.width, map.height]")
    drawn = [place for place in page.driver.execute_script("return drawn") if 40 < place[1] < width - 80]
    inside = [place for place in drawn if 40 < place[2] < height - 80][:6]
    assert inside
    for row, x, y, side in inside:
        across, down = int(x + 0.9 * side - width / 2), int(y + 0.9 * side - height / 2)
        ActionChains(page.driver).move_to_element_with_offset(page.one("#map-canvas"), across, down).click().perform()
        page.wait("return lightbox.open")
        assert page.one("#lightbox .about .path").text == page.driver.execute_script(f"return fileName({row})")
        page.driver.execute_script("lightbox.close()")


def test_an_image_that_is_to_be_shown_on_the_map_is_drawn_on_top(page: Page) -> None:
    page.open("map")
    watch_pictures(page)
    found = page.driver.execute_script(
        """return onMap.filter((row) => {
             showOnMap(row);
             drawMap();
             const [last, x, y, side] = drawn[drawn.length - 1];
             return last !== row || Math.hypot(x + side / 2 - map.width / 2, y + side / 2 - map.height / 2) > 1;
           });"""
    )
    assert found == []


def test_the_marked_picture_has_a_frame_of_two_tones(page: Page) -> None:
    page.open("map")
    page.driver.execute_script(
        """window.calls = [];
           const pen = CanvasRenderingContext2D.prototype, { drawImage, strokeRect } = pen;
           pen.drawImage = function (...all) { calls.push(["picture", ...all.slice(5)]); drawImage.apply(this, all); };
           pen.strokeRect = function (...box) {
             calls.push([this.strokeStyle, this.lineWidth, ...box]);
             strokeRect.apply(this, box);
           };"""
    )
    page.driver.execute_script("openLightbox(onMap[7])")
    page.one('#lightbox a[href^="#map"]').click()
    page.wait("calls.length = 0; drawMap(); return calls.some(([kind]) => kind === 'picture')")
    picture, outer, inner = page.driver.execute_script("return calls.slice(-3)")
    assert picture[0] == "picture"  # drawn last, so that no other picture covers it or its frame
    left, top, width, height = outer[2:]
    assert left < picture[1] < picture[1] + picture[3] < left + width
    assert top < picture[2] < picture[2] + picture[4] < top + height
    assert outer[2:] == inner[2:]
    assert outer[1] > inner[1]  # the second line leaves an edge of the first on both sides
    assert [outer[0], inner[0]] == page.driver.execute_script("return [themed('--panel'), themed('--text')]")


def test_all_images_of_a_cluster_are_sorted_filtered_and_added_as_one_scrolls(page: Page) -> None:
    page.open("cluster-2")
    page.driver.execute_script("membersOf(2).push(...Array(200).fill(membersOf(2)[0]))")  # 224 images
    page.driver.execute_script("go('cluster-2')")
    shots = "#members .shot"
    assert len(page.all(shots)) == 120
    page.driver.execute_script("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait(f"return document.querySelectorAll('{shots}').length === 224")
    page.open("cluster-2")
    assert page.one("#members h3").text == "All 24"
    assert page.one("#members .hint").text == "24 of 24"
    assert "16 of 24" in page.one("#view-cluster > h3").text
    page.one('#member-order [value="margin"]').click()
    margins = [float(caption.text) for caption in page.all(f"{shots} .caption")]
    assert margins == sorted(margins)
    page.driver.execute_script("scrollTo(0, 0)")
    page.one('.meters a[href="#cluster-2/class-2"]').click()
    page.wait("return byId('member-filter').value === 'class-2'")
    assert all("class class 2" in shot.get_attribute("aria-label") for shot in page.all(shots))
    assert page.one("#members .hint").text == f"{len(page.all(shots))} of 24"


def test_images_are_added_until_a_large_screen_is_full(page: Page) -> None:
    """Also when a filter begins with the list in view, and when another order begins it anew."""
    page.open("cluster-2", width=1500, height=1400)
    page.driver.execute_script(
        "membersOf(2).push(...Array(600).fill(membersOf(2).find((row) => rows.label[row] === 2)))"
    )
    page.driver.execute_script("go('cluster-2/class-2')")
    page.wait("return document.querySelectorAll('#members .shot').length > 300")
    page.one('#member-order [value="margin"]').click()
    page.wait("return document.querySelectorAll('#members .shot').length > 300")


def test_all_images_are_chosen_without_leaving_the_list(page: Page) -> None:
    page.open("cluster-2")
    page.one('#member-filter [value="class-2"]').click()
    page.wait("return location.hash === '#cluster-2/class-2' && scrollY > 0")
    page.one('#member-filter [value=""]').click()
    page.wait("return location.hash === '#cluster-2'")
    assert page.driver.execute_script("return scrollY") > 0
    assert page.driver.switch_to.active_element.get_attribute("id") == "member-filter"


def test_the_images_of_a_cluster_are_found_by_its_number(page: Page) -> None:
    page.open()
    page.one("#query").send_keys("cluster 3")
    page.wait("return document.querySelector('#view-search .card')")
    assert [card.get_attribute("data-cluster") for card in page.all("#view-search .card")] == ["3"]
    assert page.one("#view-search h2").text == "24 images, 1 clusters"
    assert all("dogs (3)" in shot.get_attribute("aria-label") for shot in page.all("#view-search .shot"))


def test_tiles_and_cards_say_what_they_are_and_what_they_are_sorted_by(page: Page) -> None:
    page.open()
    assert page.one('#overview [data-cluster="1"] .label').text == "1 dogs"
    page.one('#order [value="narrow"]').click()
    cards = [card.text for card in page.all("#cards .card p")]
    margins = [float(text.rpartition("margin ")[2]) for text in cards]
    assert margins == sorted(margins)
    page.one('#order [value="outliers"]').click()
    assert "outlier" in page.one("#cards .card p").text


def test_a_class_has_the_colour_of_its_cluster(page: Page) -> None:
    """Classes 0 and 1 fill two clusters each, class 2 one: all three have a cluster of their own."""
    page.open("map")
    colour = "return getComputedStyle(arguments[0]).backgroundColor"
    swatches = {}
    for kind in ("cluster", "class"):
        page.driver.execute_script(
            f"byId('map-colour').value = '{kind}'; byId('map-colour').dispatchEvent(new Event('change'))"
        )
        entries = page.all("#map-legend button")
        swatches[kind] = [
            page.driver.execute_script(colour, entry.find_element(By.CSS_SELECTOR, ".swatch")) for entry in entries
        ]
    assert len(set(swatches["class"])) == len(swatches["class"]) == 3
    assert swatches["class"][2] == swatches["cluster"][2]
    assert set(swatches["class"]) <= set(swatches["cluster"])


def test_duplicates_in_two_clusters_are_flagged(page: Page) -> None:
    page.open("duplicates")
    page.driver.execute_script(
        "atlas.duplicates = [{ first: 0, second: rows.cluster.findIndex((n) => n !== rows.cluster[0]), similarity: 1, "
        "likeness: 'identical' }]; startLists()"
    )
    assert page.one("#view-duplicates .apart").text.startswith("in two clusters: ")
    assert len(page.all("#view-duplicates .apart a")) == 2


@pytest.fixture
def downloads(page: Page, tmp_path: Path) -> Callable[[str], str]:
    """What a downloaded file of some name holds."""
    folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", folder)

    def read(name: str) -> str:
        WebDriverWait(page.driver, 20, poll_frequency=0.05).until(lambda _: (tmp_path / name).exists())
        return (tmp_path / name).read_bytes().decode()

    return read


def test_clusters_are_named_and_merged_in_the_page_and_label_takes_the_file(
    page: Page, downloads: Callable[[str], str], tmp_path: Path
) -> None:
    page.open("cluster-0")
    page.one("#cluster-name").send_keys('dogs: "old"' + Keys.ENTER)
    assert page.one("#view-cluster h2").text.startswith('dogs: "old"')
    page.open("cluster-4")  # from disk again: the browser has kept the name
    assert page.driver.execute_script("return clusterOf.get(0).name") == 'dogs: "old"'
    page.one("#cluster-name").send_keys("dogs" + Keys.ENTER)
    assert {card.get_attribute("data-cluster") for card in page.all("#view-cluster .card")} == {"1", "3"}
    assert page.one("#unsaved").text.startswith("2 names are only in this page.")
    page.one("#download-names").click()
    (tmp_path / "given.yaml").write_text(downloads("names.yaml"))
    (tmp_path / "clusters.json").write_text(json.dumps({"sizes": [24] * 5}))
    given = set_names(str(tmp_path), [str(tmp_path / "given.yaml")])
    assert given == {0: 'dogs: "old"', 1: "dogs", 2: "<script>alert(1)</script>", 3: "dogs", 4: "dogs"}
    page.one("#unsaved button:nth-of-type(2)").click()
    page.wait("return byId('unsaved').hidden")
    page.open("cluster-4")
    assert page.one("#view-cluster h2").text == "Cluster 4"


def test_names_in_the_browser_are_of_one_run_and_give_way_to_newer_ones(page: Page, tmp_path: Path) -> None:
    """The second page is of another run of the same name, the third of this one after `digpro label RUN 0=cats`."""
    text = Path(unquote(urlparse(page.address).path)).read_text()
    other, later = Page(page.driver, (tmp_path / "a.html").as_uri()), Page(page.driver, (tmp_path / "b.html").as_uri())
    changed = text.replace('"origin":[', '"origin":[["run began","later"],')
    assert changed != text
    (tmp_path / "a.html").write_text(changed)
    (tmp_path / "b.html").write_text(rename_clusters(text, {0: "cats"}))
    page.open("cluster-0")
    page.one("#cluster-name").send_keys("dogs" + Keys.ENTER)
    for shown, heading in (
        (page, "dogs cluster 0"),
        (other, "Cluster 0"),
        (page, "dogs cluster 0"),
        (later, "cats cluster 0"),
    ):
        shown.open("cluster-0")
        assert shown.one("#view-cluster h2").text == heading
    assert not later.one("#unsaved").is_displayed()
    page.open("cluster-0")
    assert page.one("#view-cluster h2").text == "Cluster 0"  # nothing is left in the browser


def test_images_are_selected_and_saved_as_csv(page: Page, downloads: Callable[[str], str]) -> None:
    page.open("cluster-1")
    page.one("#members .select").click()
    shots = page.all("#view-cluster > .sheet .shot")[:2]
    for shot in shots:
        shot.click()
    assert not page.driver.execute_script("return lightbox.open")
    assert page.one("#selection").text.startswith("2 selected")
    page.one("#download-selection").click()
    lines = list(csv.DictReader(downloads("selection.csv").splitlines()))
    assert [line["path"] for line in lines] == [shot.get_attribute("aria-label").split(",")[0] for shot in shots]
    assert {(line["cluster"], line["name"]) for line in lines} == {("1", "dogs")}
    for view, name in [("outliers", "outliers"), ("duplicates", "duplicates"), ("search=photos", "search")]:
        page.driver.execute_script(f"go('{view}')")
        page.one("main > section:not([hidden]) .csv").click()
        assert downloads(f"{name}.csv").startswith("index,path,cluster,name,class,")
    assert len(downloads("search.csv").splitlines()) == 121


def test_a_frame_that_may_not_save_files_shows_their_text(frame: Page) -> None:
    frame.one('nav a[href="#outliers"]').click()
    frame.one("#view-outliers .csv").click()
    assert frame.one("#lightbox textarea").get_attribute("value").startswith("index,path,cluster,name,class,")


def test_clusters_of_one_name_are_one_group_with_the_switch(page: Page) -> None:
    page.open("classes")
    columns = "return matrix.columns.map((c) => c.number).sort()"
    assert page.driver.execute_script(columns) == [0, 1, 2, 3, 4]
    page.one("#by-name").click()
    assert page.driver.execute_script(columns) == [0, 1, 2, 4]
    sums = "return matrix.labels.map((label) => matrix.columns.reduce((sum, c) => sum + countAt(label, c), 0))"
    assert page.driver.execute_script(sums) == page.driver.execute_script(
        "return matrix.labels.map((label) => classTotals.get(label))"
    )
    page.driver.execute_script("go('clusters')")
    cards = {card.get_attribute("data-cluster"): card.text for card in page.all("#cards .card")}
    assert "dogs clusters 1, 3" in cards["1"].replace("\n", " ")
    assert "48 images" in cards["1"]
    assert "3" not in cards
    page.driver.execute_script("go('cluster-3')")
    assert page.one("#members .hint").text == "48 of 48"
    page.driver.execute_script("go('map')")
    page.wait("return map.drawn.length")
    legend = [button.text for button in page.all("#map-legend button")]
    assert legend == ["Cluster 0", "dogs", "<script>alert(1)</script> (2)", "Cluster 4"]
    page.one("#by-name").click()
    assert len(page.all("#map-legend button")) == 5


def test_the_page_says_what_it_is_of(page: Page) -> None:
    page.open()
    page.one("#origin summary").click()
    assert page.one("#origin dl").text.split() == ["source", "photos", "seed", "3"]


@pytest.mark.parametrize(
    ("epochs", "churn", "start", "kind"),
    [
        (4, 0.43, "Not converged: 43 % of the images changed cluster in the last E-step.", "alarm"),
        (4, 0.05, "Nearly converged: 5.0 %", ""),
        (4, 0.004, "Converged: 0.4 %", "fine"),
        (2, 0.004, "Too short to judge: fewer than 3 E-steps follow the warm-up.", "alarm"),
        (4, None, "Too short to judge", "alarm"),
    ],
)
def test_training_begins_with_a_verdict(page: Page, epochs: int, churn: float | None, start: str, kind: str) -> None:
    page.open("clusters")
    page.driver.execute_script(
        """const [epochs, churn] = arguments;
           const all = Object.fromEntries(atlas.history.flatMap(Object.entries).filter(([, value]) => value !== null));
           atlas.history = Array.from({ length: epochs + 1 }, (_, epoch) => ({ ...all, epoch, label_churn: churn }));
           [atlas.warmup, atlas.alarms] = [1, []];
           go("training");""",
        epochs,
        churn,
    )
    assert page.one("#verdict").text.startswith(start)
    assert page.one("#verdict").get_attribute("class") == kind
    assert len(page.all("#view-training p.fine")) == (2 if kind == "fine" else 0)  # with "No alarm was raised."
    assert len(page.all(".panel rect.warmup")) == len(page.all(".panel"))
    assert "acc: share of images" in page.all(".meanings")[1].text


def test_every_curve_says_what_it_means(page: Page) -> None:
    page.open("training")
    drawn = [*LOSSES, "acc", "nmi", "ari", "label_free", "label_churn", "size_entropy", "feature_spread", "silhouette"]
    meanings = page.driver.execute_script("return arguments[0].map(meaningOf)", drawn)
    assert all(meanings)
    assert "when the warm-up ends" in meanings[LOSSES.index("loss")]
    assert len({meanings[LOSSES.index(name)] for name in LOSSES if name != "loss"}) == 1


def test_back_closes_an_image_and_the_focus_stays(page: Page) -> None:
    page.open("cluster-0")
    page.one("#next-cluster").click()
    page.wait("return location.hash !== '#cluster-0' && document.activeElement.id === 'next-cluster'")
    view = page.view
    page.one("#view-cluster .shot").click()
    page.one('#lightbox [data-step="1"]').click()
    assert page.driver.execute_script("return document.activeElement.dataset.step") == "1"
    page.one("#lightbox .sheet .shot").click()
    assert page.driver.execute_script("return lightbox.contains(document.activeElement)")
    page.driver.back()
    page.wait("return !lightbox.open")
    assert page.view == view
    page.driver.back()
    page.wait("return location.hash === '#cluster-0'")


@pytest.mark.parametrize("width", [360, 900, 1000, 1090, 1200, 1201, 1310])
def test_the_last_tab_is_seen(page: Page, width: int) -> None:
    page.open("outliers", width=width, touch=width < 500)
    page.driver.execute_script("document.querySelector('h1 a').textContent = 'run of a long name '.repeat(3)")
    right = page.driver.execute_script(
        "return document.querySelector('nav [aria-current]').getBoundingClientRect().right"
    )
    assert 0 < right <= width
    if width > 500:
        assert page.driver.execute_script(
            "const row = document.querySelector('nav'); return row.scrollWidth <= row.clientWidth"
        )


@pytest.mark.parametrize("view", ["cluster-1", *(view for view in VIEWS if view != "cluster-1")])
def test_long_names_do_not_widen_the_page(page: Page, view: str) -> None:
    """Of clusters and classes, and of two clusters that are one group."""
    page.open("clusters", width=360, touch=True)
    page.driver.execute_script(
        """for (const n of [1, 3]) clusterOf.get(n).name = "x".repeat(300);
           atlas.classNames.splice(0, 3, ..."yzw".split("").map((letter) => letter.repeat(300)));
           showGroups();
           go(arguments[0]);""",
        view,
    )
    for _ in range(2):
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
        page.driver.execute_script("byId('by-name').click()")
    assert page.driver.execute_script("const card = document.querySelector('.card h3'); return card.clientHeight") < 80


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_in_the_matrix_can_be_read(page: Page, scheme: str) -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    page.open("classes")
    worst = page.driver.execute_script(
        """const light = (colour) => { const [r, g, b] = colour.map((v) => v / 255).map((v) =>
             v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
           const rgb = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
           const [accent, cell] = [themed("--accent"), themed("--cell")];
           const ratios = Array.from({ length: 101 }, (_, i) => {
             const alpha = i / 100;
             const back = rgb(accent).map((value, c) => alpha * value + (1 - alpha) * rgb(cell)[c]);
             const [a, b] = [light(back), light(rgb(readableOn(accent, cell, alpha)))].sort((x, y) => y - x);
             return (a + 0.05) / (b + 0.05);
           });
           return Math.min(...ratios);"""
    )
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert worst >= 4.5


def test_printed_pages_keep_the_pictures(page: Page) -> None:
    page.open("cluster-1")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert page.one("#view-cluster .shot").value_of_css_property("print-color-adjust") == "exact"
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
