"""The switch "by name": clusters with the same name are one group in every view. Clusters 1 and 3 are `dogs`."""

from __future__ import annotations

import pytest

pytest.importorskip("selenium")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.helpers.browser import Page, needs_browser

pytestmark = needs_browser
IN_CLUSTER = "return [1, 3].map((n) => rows.cluster.indexOf(n))"  # a row of each member of the group


def open_by_name(page: Page, view: str = "clusters") -> None:
    """Open the page, switch it, and go to a view."""
    page.open()
    page.one("#by-name").click()
    page.driver.execute_script("go(arguments[0])", view)


def clusters_of_pictures(page: Page, selector: str) -> list[int]:
    """The clusters of the pictures behind some elements, by their rows."""
    return page.driver.execute_script(
        "return Array.from(document.querySelectorAll(arguments[0]), (e) => rows.cluster[e.dataset.row])", selector
    )


def test_the_overview_has_one_tile_for_a_group(page: Page) -> None:
    open_by_name(page)
    tiles = {tile.get_attribute("data-cluster"): tile for tile in page.all("#overview .cell")}
    assert sorted(tiles) == ["0", "1", "2", "4"]
    group = tiles["1"]
    page.one('#measure [value="size"]').click()
    assert group.get_attribute("aria-label") == "dogs, 48 images"
    assert group.find_element(By.CSS_SELECTOR, ".label").text == "dogs"
    assert set(clusters_of_pictures(page, '#overview [data-cluster="1"] .picture')) == {1, 3}
    assert set(clusters_of_pictures(page, '#cards [data-cluster="1"] .picture')) == {1, 3}
    assert "48 images" in page.driver.execute_script(
        "return clusterTip(shownCluster(3)).map((e) => e.textContent).join()"
    )
    group.click()
    page.wait("return location.hash === '#cluster-1'")
    assert page.one("#members .hint").text == "48 of 48"
    assert page.driver.title == "dogs | run <b> | atlas"
    page.one("#by-name").click()
    assert len(page.all("#overview .cell")) == 5


def test_a_new_name_is_in_the_overview_at_once(page: Page) -> None:
    open_by_name(page, "cluster-4")
    page.one("#cluster-name").send_keys("dogs" + Keys.ENTER)
    assert page.driver.title == "dogs | run <b> | atlas"
    page.driver.execute_script("go('clusters')")
    assert len(page.all("#overview .cell")) == 3
    page.driver.execute_script("rename(clusters, ({ saved }) => saved)")
    assert len(page.all("#overview .cell")) == 4


def test_arrow_keys_reach_every_tile_past_the_gaps_of_merged_clusters(page: Page) -> None:
    open_by_name(page)
    page.driver.execute_script("document.querySelector('#overview [tabindex=\"0\"]').focus()")
    reached = page.driver.execute_script(
        """const reached = new Set();
           const visit = (cell) => {
             if (reached.has(cell)) return;
             reached.add(cell);
             for (const key of ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]) {
               cell.focus();
               cell.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
               visit(document.activeElement);
             }
           };
           visit(document.activeElement);
           return reached.size;"""
    )
    assert reached == len(page.all("#overview .cell")) == 4


def test_the_search_finds_a_group_and_all_its_images(page: Page) -> None:
    for query in ("dogs", "cluster 3"):
        open_by_name(page, f"search={query}")
        cards = page.all("#view-search .card")
        assert [card.get_attribute("data-cluster") for card in cards] == ["1"]
        assert "48 images" in cards[0].text
        assert page.one("#view-search h2").text == "48 images, 1 clusters"
        assert {caption.text for caption in page.all("#view-search .caption")} == {"dogs"}


def test_an_opened_image_and_its_tip_name_the_group(page: Page) -> None:
    open_by_name(page)
    for row in page.driver.execute_script(IN_CLUSTER):
        page.driver.execute_script("openLightbox(arguments[0])", row)
        link = page.one("#lightbox dd a")
        assert link.text == "dogs"
        assert link.get_attribute("href").endswith("#cluster-1")
        assert ", dogs, " in page.one("#lightbox .huge").get_attribute("aria-label")
        tip = page.driver.execute_script("return imageTip(arguments[0])[1].firstChild.textContent", row)
        assert tip == "dogs"


def test_a_runner_up_within_the_group_is_none(page: Page) -> None:
    within = "rows.cluster[row] % 2 && rows.runnerUp[row] % 2 && rows.cluster[row] !== rows.runnerUp[row]"
    open_by_name(page)
    page.driver.execute_script("const row = rows.cluster.indexOf(1); rows.runnerUp[row] = 3; openLightbox(row)")
    facts = [fact.text for fact in page.all("#lightbox dd")]
    assert "another cluster of the group" in facts
    page.key(Keys.ESCAPE)
    page.wait("return !lightbox.open")
    page.driver.execute_script(
        "for (const row of clusterOf.get(1).border) rows.runnerUp[row] = 3; regroup(); go('cluster-1')"
    )
    border = "document.querySelectorAll('#view-cluster > .sheet')[1].querySelectorAll('.shot')"
    rows = f"Array.from({border}, (shot) => Number(shot.dataset.row))"
    assert page.driver.execute_script(f"return {rows}.filter((row) => {within})") == []
    assert page.driver.execute_script(f"return {rows}.length") > 0


def test_the_nearest_clusters_are_groups(page: Page) -> None:
    open_by_name(page, "cluster-0")
    names = [near.find_elements(By.TAG_NAME, "span")[1].text for near in page.all("#view-cluster .near")]
    assert sorted(names) == ["<script>alert(1)</script> (2)", "Cluster 4", "dogs"]


def test_duplicates_within_a_group_are_not_flagged(page: Page) -> None:
    pair = "{ first: rows.cluster.indexOf(1), second: rows.cluster.indexOf(%d), similarity: 1, likeness: 'identical' }"
    page.open("duplicates")
    page.driver.execute_script(f"atlas.duplicates = [{pair % 3}, {pair % 2}]; startLists()")
    assert len(page.all("#view-duplicates .apart")) == 2
    page.one("#by-name").click()
    (apart,) = page.all("#view-duplicates .apart")
    assert [chip.text for chip in apart.find_elements(By.TAG_NAME, "a")] == ["dogs", "<script>alert(1)</script> (2)"]


def test_outliers_name_their_group(page: Page) -> None:
    page.open("outliers")
    page.driver.execute_script(f"{IN_CLUSTER.replace('return', 'atlas.outliers =')}; startLists()")
    labels = [shot.get_attribute("aria-label").split(", ")[1] for shot in page.all("#view-outliers .shot")]
    assert labels == ["dogs (1)", "dogs (3)"]
    page.one("#by-name").click()
    labels = [shot.get_attribute("aria-label").split(", ")[1] for shot in page.all("#view-outliers .shot")]
    assert labels == ["dogs", "dogs"]


def test_the_border_of_a_group_names_groups(page: Page) -> None:
    open_by_name(page, "cluster-0")
    page.driver.execute_script("for (const row of clusterOf.get(0).border) rows.runnerUp[row] = 3; go('cluster-0')")
    border = page.all("#view-cluster > .sheet")[1]
    assert {caption.text for caption in border.find_elements(By.CSS_SELECTOR, ".caption")} == {"→ dogs"}
