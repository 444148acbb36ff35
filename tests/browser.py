"""A real Chromium without a window, and the playground in it as a person meets it. Import it where selenium is."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium import webdriver

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")

SEND_FILE = """
const [kind, name, type, base64] = arguments;
const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], name, { type }));
document.body.dispatchEvent(
  kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }),
);
"""


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Skips the test that asks where Chromium is missing; nothing is downloaded."""
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,850"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    silent = {**os.environ, "SE_OFFLINE": "true", "SE_AVOID_STATS": "true"}
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER, env=silent))
    try:
        yield driver
    finally:
        driver.quit()


class Playground:
    """The page, opened."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        driver.get_log("browser")  # what an earlier page had to say
        driver.get(url)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        """What a script reads: hidden text and white space included."""
        return self.texts(selector)[0]

    def texts(self, selector: str) -> list[str]:
        return [str(element.get_property("textContent")) for element in self.all(selector)]

    def press(self, *keys: str) -> Any:
        """Keys as from a keyboard; the element that has the focus then."""
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()
        return self.driver.switch_to.active_element

    def until(self, condition: Callable[[], Any], seconds: float = 15.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            assert time.monotonic() < deadline, f"it did not happen in time; console: {self.driver.get_log('browser')}"
            time.sleep(0.02)
        return result

    def until_ready(self) -> None:
        self.until(lambda: self.text("#health") == "Ready" and self.text("#model"))

    def ask(self, question: str) -> str:
        """Types, asks and waits for the end; the answer as it is shown."""
        turns = len(self.all(".turn"))
        self.find("#question").send_keys(question)
        self.find("#ask").click()
        return self.answer(turns)

    def answer(self, turn: int = 0) -> str:
        """The answer of a turn, once it is over."""
        self.until(lambda: len(self.all(".turn .answer:not([aria-busy])")) > turn)
        return self.texts(".turn .answer > .text")[turn]

    def send_file(self, kind: str, name: str, media_type: str, base64: str) -> None:
        """Drops or pastes a file."""
        self.driver.execute_script(SEND_FILE, kind, name, media_type, base64)

    def code(self, language: str, turn: int = 0) -> str:
        """The code that the page shows for a turn."""
        panel = self.all(".turn .code")[turn]
        self.driver.execute_script("arguments[0].open = true", panel)
        radio = panel.find_element("css selector", f"input[value={language}]")
        self.driver.execute_script("arguments[0].click()", radio)
        shown = panel.find_element("css selector", "code")
        return str(self.until(lambda: shown.get_property("textContent")))

    def emulate(self, *, width: int = 1280, height: int = 850, scheme: str = "light") -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def complaints(self) -> list[str]:
        """Script errors and breaches of the policy. Answers with an error status are no fault of the page."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["source"] != "network"]
