"""The playground in a real browser, in front of the real servers and the demo model."""

import re
from collections.abc import Iterator

import pytest

from tests.e2e.deployment import MODEL, Deployment

pytest.importorskip("selenium")

from selenium.webdriver import ActionChains

from tests.browser import Playground, chromium


@pytest.fixture
def page(demo: Deployment) -> Iterator[Playground]:
    with chromium() as driver:
        page = Playground(driver, f"{demo.url}/")
        page.until_ready()
        yield page
        assert page.complaints() == []


def test_the_page_answers_about_its_own_pictures(page: Playground) -> None:
    assert page.text("#model") == MODEL
    for i, answer in enumerate(["A red circle.", "The star is green.", "There are three triangles."]):
        page.all("#examples button")[i].click()
        assert page.answer() == answer
        page.find("#restart").click()


def test_a_drawing_is_asked_about_twice(page: Playground) -> None:
    page.find("#draw").click()
    for group, name in (("kinds", "heart"), ("colors", "purple")):
        page.driver.execute_script("arguments[0].click()", page.find(f"#{group} input[value={name}]"))
    ActionChains(page.driver).move_to_element(page.find("#canvas")).click().perform()
    page.find("dialog button[value=use]").click()
    page.until(lambda: page.all("#attached img"))
    assert page.ask("What is in this image?") == "A purple heart."
    figures = page.text(".figures")
    assert re.search(r"First token[1-9]\d* ms", figures)
    assert re.search(r"Speed[\d.]+ tokens/s", figures)
    assert re.search(r"Prompt\d+ tokens, [1-9]\d* for pictures", figures)
    assert page.ask("What color is the heart?") == "The heart is purple."
