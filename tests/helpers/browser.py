"""Pages in headless Chromium, from disk and without a network: how tests start it and what they ask of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no browser: apt-get install chromium chromium-driver"
)
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--host-rules=MAP * ~NOTFOUND",
)


def start_browser() -> Any:
    """A driver of Chromium that reaches no network and keeps what the page complains of."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ARGUMENTS:
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


class Page:
    """A page in a browser, with what the tests ask of it."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, view: str = "clusters", width: int = 1200, height: int = 800, *, touch: bool = False) -> None:
        """Load the page afresh at a size in pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}#{view}")
        self.wait("return document.documentElement.dataset.ready")

    def open_in_frame(self, host: Path) -> None:
        """Show the page as MLflow shows an artifact: a blob in a frame that may run scripts and nothing else."""
        text = Path(unquote(urlparse(self.address).path)).read_text()
        content = json.dumps(text).replace("<", "\\u003c")
        host.write_text(
            f"""<iframe sandbox="allow-scripts" style="width: 1200px; height: 700px"></iframe><script>
            const blob = new Blob([{content}], {{ type: "text/html" }});
            document.querySelector("iframe").src = URL.createObjectURL(blob);</script>"""
        )
        self.driver.get(host.as_uri())
        self.driver.switch_to.frame(self.one("iframe"))
        self.wait("return document.documentElement.dataset.ready")

    def wait(self, script: str) -> Any:
        """What a script returns, as soon as that is true."""
        return WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda driver: driver.execute_script(script))

    def one(self, selector: str) -> Any:
        """The first element that a CSS selector finds."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        """All of them."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def key(self, key: str) -> None:
        """Press a key where the focus is."""
        ActionChains(self.driver).send_keys(key).perform()

    def tap(self, x: float, y: float) -> None:
        """Touch a place of the screen, in a page that was opened for touch."""
        touch = {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]}
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    @property
    def view(self) -> str:
        """The part of the address after #."""
        return self.driver.execute_script("return location.hash.slice(1)")
