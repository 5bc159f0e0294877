"""The page of a comparison in headless Chromium, from disk: sort, open, filter, keys, a frame, and a phone."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.comparison import comparison_page
from pipeline.runs.compare import IMAGES_OF_A_CLUSTER
from tests.helpers.comparisons import comparison

pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tests.helpers.browser import Page, needs_browser

pytestmark = needs_browser
FOUND = comparison()
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a comparison, on disk."""
    file = tmp_path_factory.mktemp("comparison") / "comparison.html"
    file.write_text(comparison_page(FOUND))
    return file.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    """That page in a browser. Nothing may fail in it, nor be asked of a network, in any test."""
    yield Page(browser, address)
    assert browser.get_log("browser") == []


def texts(page: Page, selector: str) -> list[str]:
    return [element.text for element in page.all(selector)]


def test_the_head_says_how_far_the_runs_agree(page: Page) -> None:
    page.open()
    moved = int(FOUND.moved.sum())
    assert texts(page, "#facts dd") == [
        "600",
        "6",
        f"{moved} · {100 * moved / 600:.0f} %",
        f"{100 * FOUND.agreement:.0f} %",
    ]
    ari, nmi = (table.find_elements(By.CSS_SELECTOR, ".score") for table in page.all("#scores table"))
    assert [cell.text for cell in ari] == ["–", "0.710", "0.580", "0.710", "–", "0.490", "0.580", "0.490", "–"]
    assert nmi[1].text == "0.760"
    link = page.one("#scores a.run-link")
    assert link.text == "k6/seed-0 <i>"
    assert link.get_attribute("href").endswith("/first%20run/atlas.html")
    assert len(page.all("#scores a.run-link")) == 2  # in both tables; the other runs have no atlas


@pytest.mark.parametrize(
    ("order", "values"),
    [("stability", FOUND.stability), ("moved", -FOUND.moved), ("size", -FOUND.runs[0].sizes), ("number", range(6))],
)
def test_clusters_are_sorted(page: Page, order: str, values: list[float]) -> None:
    page.open()
    page.one(f'#order [value="{order}"]').click()
    shown = [int(card.get_attribute("data-cluster")) for card in page.all("#cards .card")]
    assert shown == sorted(range(6), key=lambda k: (values[k], k))


def test_a_cluster_names_its_counterparts_with_size_and_overlap(page: Page) -> None:
    page.open()
    page.one('#cards [data-cluster="4"]').click()
    page.wait("return !byId('view-cluster').hidden")
    assert page.view == "cluster-4"
    run = FOUND.runs[1]
    assert run.match[1] == 4
    jaccard = run.common[1] / (run.sizes[1] + 100 - run.common[1])
    cells = texts(page, "#matches tbody tr:first-child > *")
    assert cells == [run.name, "birds & <b>bees</b> (1)", str(run.sizes[1]), str(run.common[1]), f"{jaccard:.3f}"]
    (missing,) = set(range(6)) - set(FOUND.runs[2].match.tolist())
    page.driver.execute_script(f"go('cluster-{missing}')")
    assert texts(page, "#matches tbody tr:last-child > *")[1] == "no counterpart"


def test_images_that_moved_come_with_their_cluster_in_each_run(page: Page) -> None:
    page.open("cluster-1")
    items = page.all("#moved .moved")
    disagreeing = [len(item.find_elements(By.CSS_SELECTOR, "a.apart")) for item in items]
    assert disagreeing == sorted(disagreeing, reverse=True)
    assert set(disagreeing) == {1, 2}
    assert page.one("#moved .bar .hint[role]").text == f"{len(items)} of {FOUND.moved[1]} shown"
    assert len(items) == min(FOUND.moved[1], IMAGES_OF_A_CLUSTER)
    rows = [int(item.get_attribute("data-row")) for item in items]
    assert [item.find_element(By.CSS_SELECTOR, ".path").text for item in items] == [
        FOUND.sample.path[row] for row in rows
    ]
    assert items[0].find_elements(By.CSS_SELECTOR, "dt")[0].text == FOUND.runs[0].name


def test_a_flow_leads_to_its_images(page: Page) -> None:
    page.open()
    page.one('nav a[href="#flows"]').click()
    page.wait("return !byId('view-flows').hidden")
    counts = [int(text) for text in texts(page, "#flow-table a.flow")]
    assert counts == FOUND.runs[1].flows[:, 2].tolist()
    assert counts == sorted(counts, reverse=True)
    page.one('#flow-run [value="2"]').click()
    page.wait("return location.hash === '#flows-2'")
    start, to, count = FOUND.runs[2].flows[0].tolist()
    page.one("#flow-table a.flow").click()
    page.wait(f"return location.hash === '#cluster-{start}/2-{to}'")
    assert page.one("#moved-filter").get_attribute("value") == f"2-{to}"
    rows = [int(item.get_attribute("data-row")) for item in page.all("#moved .moved")]
    assert rows
    assert (FOUND.sample.clusters[0, rows] == start).all()
    assert (FOUND.sample.clusters[2, rows] == to).all()
    assert page.one("#moved .bar .hint[role]").text == f"{len(rows)} of {count} shown"
    page.one('#moved-filter [value=""]').click()
    page.wait(f"return location.hash === '#cluster-{start}'")
    page.driver.back()
    page.wait("return !byId('view-flows').hidden")  # the filter took the place of the entry before


def test_a_cluster_lists_where_its_images_went(page: Page) -> None:
    page.open("cluster-1")
    own = [flow for flow in FOUND.runs[1].flows.tolist() if flow[0] == 1]
    lists = page.all("#cluster-flows ul")
    links = lists[0].find_elements(By.CSS_SELECTOR, "a.figure")
    assert [int(link.text.split(" ")[0]) for link in links] == [count for _, _, count in own]
    links[0].click()
    page.wait(f"return location.hash === '#cluster-1/1-{own[0][1]}'")


def test_an_image_opens_with_its_facts_and_back_or_esc_close_it(page: Page) -> None:
    page.open("cluster-1")
    row = int(page.one("#moved .moved").get_attribute("data-row"))
    page.one("#moved .shot").click()
    page.wait("return lightbox.open")
    assert page.one("#lightbox .about .path").text == FOUND.sample.path[row]
    assert [name in page.one("#lightbox .places").text for name in (run.name for run in FOUND.runs)] == [True] * 3
    facts = page.one("#lightbox .about > dl:not(.places)").text
    assert f"{FOUND.sample.elsewhere[row]} of 2" in facts
    assert f"{100 * FOUND.sample.agreement[row]:.0f} % of the runs agree" in facts
    page.key(Keys.ARROW_RIGHT)
    assert page.one("#lightbox .about .path").text != FOUND.sample.path[row]
    page.key(Keys.ESCAPE)
    page.wait("return !lightbox.open")
    assert page.view == "cluster-1"
    page.one("#moved .shot").click()
    page.wait("return lightbox.open")
    page.driver.back()
    page.wait("return !lightbox.open")
    assert page.view == "cluster-1"
    page.key(Keys.ESCAPE)
    page.wait("return location.hash === '#clusters'")


def test_the_keyboard_goes_from_cluster_to_cluster(page: Page) -> None:
    page.open("cluster-1")
    page.key(Keys.ARROW_RIGHT)
    page.wait("return location.hash !== '#cluster-1'")
    page.key(Keys.ARROW_LEFT)
    page.wait("return location.hash === '#cluster-1'")


def test_names_are_text(page: Page) -> None:
    page.open("cluster-0")
    assert page.one("#view-cluster h2").text.startswith(SCRIPT)
    assert page.driver.title == f"{SCRIPT} (0) | Comparison of 3 runs"
    for view in ("clusters", "flows", "cluster-0"):
        page.driver.execute_script(f"go('{view}')")
        assert page.driver.execute_script("return document.querySelectorAll('main b, main u, main script').length") == 0
        assert page.driver.execute_script("return document.querySelectorAll('main i:not([style])').length") == 0


@pytest.mark.parametrize("view", ["clusters", "flows", "cluster-1"])
def test_no_view_is_wider_than_a_small_phone(page: Page, view: str) -> None:
    page.open(view, width=360, touch=True)
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
    assert page.driver.execute_script("return VIEWS.filter((name) => !byId(`view-${name}`).hidden)") == [
        view.split("-")[0]
    ]


def test_long_names_do_not_widen_the_page(page: Page) -> None:
    page.open("clusters", width=360, touch=True)
    page.driver.execute_script("runs.forEach((run) => { run.name = 'x'.repeat(300); run.names[1] = 'y'.repeat(300) })")
    for view in ("clusters", "cluster-1", "flows-2"):
        page.driver.execute_script(f"startClusters(); startFlows(); go('{view}')")
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360


def test_the_images_of_a_list_are_saved_as_csv(page: Page, tmp_path: Path) -> None:
    folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", folder)
    page.open("cluster-1")
    page.one("#moved .csv").click()
    file = tmp_path / "cluster-1-moved.csv"
    WebDriverWait(page.driver, 20, poll_frequency=0.05).until(lambda _: file.exists())
    lines = list(csv.DictReader(file.read_text().splitlines()))
    rows = [int(item.get_attribute("data-row")) for item in page.all("#moved .moved")]
    assert [line["path"] for line in lines] == [FOUND.sample.path[row] for row in rows]
    for run in range(3):
        assert [int(line[f"cluster_{run}"]) for line in lines] == FOUND.sample.clusters[run, rows].tolist()


def test_links_keys_and_back_work_in_the_frame_of_a_viewer(page: Page, tmp_path: Path) -> None:
    page.open_in_frame(tmp_path / "host.html")

    def shown(view: str) -> None:
        page.wait(f"return !document.getElementById('view-{view}').hidden")

    assert page.all("#scores a.run-link") == []  # the frame opens no files
    page.one('#cards [data-cluster="3"]').click()
    shown("cluster")
    page.key(Keys.ESCAPE)
    shown("clusters")
    page.one('nav a[href="#flows"]').click()
    shown("flows")
    page.one("#flow-table a.flow").click()
    shown("cluster")
    page.driver.execute_script("history.back()")
    shown("flows")
