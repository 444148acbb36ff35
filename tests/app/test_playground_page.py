"""The playground in a real browser, in front of a scripted worker."""

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from protocol.messages import ChatMessage, PicturePart, Submit, TextPart
from tests.app.conftest import gateway_in_a_thread, picture
from tests.app.scripted_worker import ScriptedWorker

pytest.importorskip("selenium")

from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.browser import Playground, chromium

pytestmark = pytest.mark.timeout(120)

NASTY = r"""It's "$HOME" `id` \n \\ $(id) ${x} 100% 日本 😀 <b>&amp;</b> {y} EOF #!"""


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def worker() -> ScriptedWorker:
    return ScriptedWorker()


@pytest.fixture(scope="module")
def url(driver: Any, worker: ScriptedWorker) -> Iterator[str]:
    with gateway_in_a_thread(worker) as url:
        yield url


@pytest.fixture
def page(driver: Any, url: str) -> Iterator[Playground]:
    page = Playground(driver, url)
    page.emulate()
    page.until_ready()
    yield page
    assert page.complaints() == []


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def said(message: ChatMessage) -> str:
    return "".join(part.text for part in message.content if isinstance(part, TextPart))


def conversation(submit: Submit) -> list[tuple[str, str]]:
    return [(message.role, said(message)) for message in submit.messages]


def test_the_first_click_asks_about_a_picture(page: Playground, worker: ScriptedWorker) -> None:
    page.find("#examples button").click()
    assert page.answer() == "What is in this image?"
    assert not page.find("#welcome").is_displayed()
    with Image.open(io.BytesIO(worker.submits[-1].pictures[0])) as drawn:
        assert drawn.convert("RGB").getpixel((120, 90)) == (220, 20, 40)


def test_an_answer_streams_and_is_timed(page: Playground) -> None:
    page.find("#question").send_keys("slowly " + "one two three " * 15 + "end\n")
    early = page.until(lambda: page.text(".answer > .text"))
    assert not early.endswith("end")
    assert page.find("#stop").is_displayed()
    assert not page.find("#ask").is_displayed()
    assert page.answer() == "one two three " * 15 + "end"
    shown = page.text(".figures")
    assert " ms" in shown
    assert "tokens/s" in shown
    assert "46 tokens" in shown
    assert page.find("#ask").is_displayed()
    # Screen readers were given each sentence once.
    assert " ".join(page.texts("#spoken p")) == f"{page.answer()} End of the answer."


def test_a_long_answer_stays_in_view(page: Playground) -> None:
    assert page.ask("flood 200").count("\n") == 200
    end = "return document.querySelector('main').getBoundingClientRect().bottom - innerHeight"
    assert abs(page.driver.execute_script(end)) <= 80
    page.driver.execute_script("scrollTo(0, 0)")
    page.ask("slowly " + "word " * 10)
    assert abs(page.driver.execute_script(end)) <= 80


def test_pictures_are_chosen_dropped_pasted_and_removed(
    page: Playground, worker: ScriptedWorker, tmp_path: Path
) -> None:
    files = [picture("PNG"), picture("JPEG", color="blue"), picture("WEBP", color="green")]
    chosen = tmp_path / "it's mine.png"
    chosen.write_bytes(files[0])
    page.find("#files").send_keys(str(chosen))
    page.until(lambda: len(page.all("#attached img")) == 1)
    page.send_file("drop", "photo.jpg", "image/jpeg", in_base64(files[1]))
    page.until(lambda: len(page.all("#attached img")) == 2)
    for count in (3, 4):
        page.send_file("paste", "image.webp", "image/webp", in_base64(files[2]))
        page.until(lambda count=count: len(page.all("#attached img")) == count)
    names = [image.get_attribute("alt") for image in page.all("#attached img")]
    assert names == ["it's mine.png", "photo.jpg", "image.webp", "image-2.webp"]
    page.find("[aria-label='Remove image-2.webp']").click()
    page.ask("compare them")
    submit = worker.submits[-1]
    assert list(submit.pictures) == files
    assert submit.messages[-1].content == (PicturePart(0), PicturePart(1), PicturePart(2), TextPart("compare them"))
    assert page.all("#attached img") == []
    assert len(page.all(".turn .pictures img")) == 3


def test_what_is_no_picture_is_told_by_name(page: Playground) -> None:
    page.send_file("drop", "notes.txt", "text/plain", in_base64(b"hello"))
    page.until(lambda: page.text("#notice") == "Not a picture: notes.txt.")
    assert page.all("#attached img") == []
    page.find("#ask").click()
    assert page.text("#notice") == "Write a question first."


def test_a_picture_is_drawn_with_the_keyboard(page: Playground, worker: ScriptedWorker) -> None:
    page.find("#draw").send_keys(Keys.ENTER)
    assert page.press(Keys.ARROW_LEFT * 10, Keys.SPACE).get_attribute("id") == "canvas"
    page.press(Keys.TAB, Keys.ARROW_RIGHT)  # a square
    page.press(Keys.TAB, Keys.ARROW_RIGHT)  # in green
    page.find("#canvas").send_keys(Keys.ARROW_RIGHT * 20, Keys.SPACE, Keys.SPACE)
    assert page.text("#drawn") == "green square at 248, 126"
    page.find("#undo").send_keys(Keys.ENTER)
    page.find("dialog button[value=use]").send_keys(Keys.ENTER)
    page.until(lambda: page.all("#attached img"))
    assert page.press().get_attribute("id") == "question"
    page.ask("what is this")
    with Image.open(io.BytesIO(worker.submits[-1].pictures[0])) as image:
        drawn = image.convert("RGB")
    assert drawn.size == (336, 252)
    assert [drawn.getpixel(at) for at in ((88, 126), (248, 126), (5, 5))] == [(220, 20, 40), (0, 128, 0), (255,) * 3]


def test_a_picture_is_drawn_with_the_pointer(page: Playground, worker: ScriptedWorker) -> None:
    page.find("#draw").click()
    pen = page.find("#kinds input[value=pen]")
    page.driver.execute_script("arguments[0].click()", pen)
    canvas = page.find("#canvas")
    ActionChains(page.driver).move_to_element(canvas).click_and_hold().move_by_offset(100, 0).release().perform()
    page.find("dialog button[value=use]").click()
    page.until(lambda: page.all("#attached img"))
    page.ask("a line")
    with Image.open(io.BytesIO(worker.submits[-1].pictures[0])) as image:
        drawn = image.convert("RGB")
    assert [drawn.getpixel(at) for at in ((200, 126), (100, 126))] == [(220, 20, 40), (255, 255, 255)]


def test_stop_ends_the_answer_at_the_worker(page: Playground, worker: ScriptedWorker) -> None:
    before = len(worker.cancelled)
    page.find("#question").send_keys("start_and_hang\n")
    page.until(lambda: page.text(".answer > .text") == "so far")
    page.find("#stop").click()
    page.until(lambda: len(worker.cancelled) == before + 1)
    page.answer()
    assert page.text(".state") == "Stopped."
    assert page.driver.switch_to.active_element.get_attribute("id") == "ask"
    page.ask("go on")
    assert conversation(worker.submits[-1]) == [
        ("user", "start_and_hang"), ("assistant", "so far"), ("user", "go on"),
    ]  # fmt: skip


def test_a_conversation_keeps_its_turns_pictures_and_settings(page: Playground, worker: ScriptedWorker) -> None:
    page.find("#system").send_keys("Be brief.")
    for name, value in {"temperature": "0.5", "top_p": "0.9", "top_k": "40", "max_completion_tokens": "7"}.items():
        page.find(f"#parameter-{name}").clear()
        page.find(f"#parameter-{name}").send_keys(value)
    page.find("#parameter-seed").send_keys("3")
    page.find("#parameter-stop").send_keys("END\n\\n\\n")
    page.find("#examples button").click()
    page.answer()
    page.ask("and now")
    submit = worker.submits[-1]
    question = "What is in this image?"
    assert conversation(submit) == [
        ("system", "Be brief."), ("user", question), ("assistant", question), ("user", "and now"),
    ]  # fmt: skip
    assert submit.messages[1].content[0] == PicturePart(0)
    assert len(submit.pictures) == 1
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 40, 3)
    assert (sampling.max_tokens, sampling.stop) == (7, ("END", "\n\n"))

    page.find("#restart").click()
    assert page.all(".turn") == []
    assert page.find("#welcome").is_displayed()
    page.ask("anew")
    assert conversation(worker.submits[-1]) == [("system", "Be brief."), ("user", "anew")]


def test_a_number_out_of_range_is_not_sent(page: Playground, worker: ScriptedWorker) -> None:
    before = len(worker.submits)
    page.driver.execute_script("document.getElementById('settings').open = false")
    page.driver.execute_script("document.getElementById('parameter-temperature').value = 3")
    page.find("#question").send_keys("hello\n")
    assert page.find("#parameter-temperature").is_displayed()
    assert page.driver.switch_to.active_element.get_attribute("id") == "parameter-temperature"
    assert (len(worker.submits), page.all(".turn")) == (before, [])


def test_failures_are_told_in_the_servers_words(page: Playground, worker: ScriptedWorker) -> None:
    page.ask("fail queue_full")
    assert page.text(".turn .error") == "Scripted: queue_full. The server asks to wait 1 second."
    page.ask("fail_late unavailable")
    assert page.all(".answer > .text")[1].text == "so far"
    assert page.all(".turn .error")[1].text == "Scripted: unavailable."
    page.ask("still there")
    assert conversation(worker.submits[-1]) == [("user", "still there")]
    page.all(".retry")[0].click()
    page.until(lambda: conversation(worker.submits[-1])[-1] == ("user", "fail queue_full"))
    page.until(lambda: not page.all("[aria-busy]"))
    assert len(page.all(".turn")) == 3
    page.send_file("drop", "broken.png", "image/png", in_base64(b"nothing"))
    page.until(lambda: page.all("#attached img"))
    page.ask("what is it")
    assert "is not a PNG, JPEG, WEBP, GIF or BMP file." in page.all(".turn .error")[-1].text


def test_text_is_never_markup(page: Playground) -> None:
    wicked = "<img src=x onerror=document.title='taken'> <script>document.title='taken'</script> &lt;b&gt;"
    assert page.ask(wicked) == wicked
    assert page.driver.execute_script("return document.querySelectorAll('.turn img, .turn script').length") == 0
    assert page.driver.title == "Playground"


def test_the_code_shown_does_what_was_done(page: Playground, worker: ScriptedWorker, tmp_path: Path) -> None:
    photo = picture("JPEG", size=(80, 60), color="purple")
    page.send_file("drop", "it's $mine.jpg", "image/jpeg", in_base64(photo))
    page.until(lambda: page.all("#attached img"))
    page.find("#system").send_keys("Say it.")
    page.find("#parameter-top_k").send_keys("5")
    page.find("#parameter-stop").send_keys("\\n")
    page.driver.execute_script("document.getElementById('question').value = arguments[0]", NASTY)
    page.find("#ask").click()
    page.answer()
    answer = page.ask("once more")
    asked = worker.submits[-1]

    link = page.all(".files")[1].find_element("css selector", "a")
    href = link.get_attribute("href")
    (tmp_path / link.get_attribute("download")).write_bytes(base64.b64decode(href.partition(",")[2]))
    for language in ("curl", "openai", "httpx"):
        assert run_code(page.code(language, turn=1), language, tmp_path) == answer
        again = worker.submits[-1]
        assert again is not asked
        assert (again.messages, again.pictures, again.sampling) == (asked.messages, (photo,), asked.sampling)


def run_code(code: str, language: str, directory: Path) -> str:
    """The answer that the code prints, a stream of events put together."""
    program = ["bash", "-euo", "pipefail", "-c"] if language == "curl" else [sys.executable, "-c"]
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [*program, code], cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    if language != "curl":
        return done.stdout.removesuffix("\n")
    events = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"]["content"] for event in events for choice in event["choices"])


def test_code_is_copied(page: Playground) -> None:
    page.ask("hello there")
    origin = page.driver.current_url.rstrip("/")
    permissions = {"origin": origin, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.driver.execute_cdp_cmd("Browser.grantPermissions", permissions)
    shown = page.code("httpx")
    page.find(".copy").click()
    page.until(lambda: page.text(".copied") == "Copied")
    read = "const done = arguments[0]; navigator.clipboard.readText().then(done, (error) => done(String(error)))"
    assert page.driver.execute_async_script(read) == shown


def test_everything_can_be_reached_and_done_with_the_keyboard(page: Playground) -> None:
    assert page.press(Keys.TAB).text == "Skip to the question"
    seen = []
    while "parameter-stop" not in seen:
        focused = page.press(Keys.TAB)
        seen.append(focused.get_attribute("id") or focused.tag_name)
        outlined = (
            "return getComputedStyle(arguments[0].id === 'files' ? arguments[0].nextElementSibling : arguments[0])"
        )
        assert page.driver.execute_script(f"{outlined}.outlineStyle", focused) == "solid", seen[-1]
    assert {"question", "files", "draw", "ask", "system", "parameter-temperature"} <= set(seen)

    page.find(".skip").send_keys(Keys.ENTER)
    page.press("one line")
    page.find("#question").send_keys(Keys.SHIFT, Keys.ENTER)
    assert page.all(".turn") == []
    page.press("another", Keys.ENTER)
    assert page.answer() == "one line another"
    assert page.press("start_and_hang", Keys.ENTER).get_attribute("id") == "question"
    page.until(lambda: page.texts(".answer > .text")[1:] == ["so far"])
    page.press(Keys.ESCAPE)
    page.answer(1)
    assert page.texts(".state")[1] == "Stopped."


def test_it_fits_a_phone_and_the_colour_scheme(page: Playground) -> None:
    page.ask("word " + "x" * 500)
    page.code("curl")
    page.driver.execute_script("document.getElementById('settings').open = true")
    for scheme in ("light", "dark"):
        page.emulate(width=320, height=640, scheme=scheme)
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 320
        colour = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        red, *_ = map(int, colour.removeprefix("rgb(").rstrip(")").split(", "))
        assert (red < 60) == (scheme == "dark")
    page.find("#draw").click()
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 320


def test_axe_finds_no_fault(page: Playground) -> None:
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed").Axe()

    def check(what: str) -> None:
        for scheme in ("light", "dark"):
            page.emulate(scheme=scheme)
            violations = axe.run(page.driver)["violations"]
            found = [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in violations]
            assert found == [], f"{what}, {scheme}"

    check("at first")
    page.send_file("drop", "photo.png", "image/png", in_base64(picture()))
    page.until(lambda: page.all("#attached img"))
    page.ask("hello")
    page.ask("fail queue_full")
    page.code("curl")
    page.send_file("drop", "photo.png", "image/png", in_base64(picture()))
    page.until(lambda: page.all("#attached img"))
    check("in a conversation")
    page.find("#draw").click()
    check("while drawing")
