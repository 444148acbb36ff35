"""The playground in a real browser when it is not let in, or nobody is there."""

from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.cli import build_server
from app.errors import ApiError
from app.media.fetcher import Network
from app.settings import Settings
from tests.app.conftest import gateway_in_a_thread
from tests.app.scripted_worker import MODEL, ScriptedWorker

pytest.importorskip("selenium")

from tests.browser import Playground, chromium

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


def test_a_worker_that_is_away_is_told_and_awaited(driver: Any) -> None:
    worker = ScriptedWorker()
    with gateway_in_a_thread(worker) as url:
        page = Playground(driver, url)
        page.until_ready()
        worker.silent = True
        page.ask("hello")
        assert page.text(".turn .error")
        page.until(lambda: not page.all("#health.ready"))
        assert "model server" in page.text("#health")
        worker.silent = False
        page.until(lambda: page.text("#health") == "Ready")
        page.find(".retry").click()
        assert page.answer() == "hello"
    page.ask("hello")
    assert page.all(".turn .error")[-1].text.startswith("The server cannot be reached.")
    page.until(lambda: page.text("#health").startswith("The server cannot be reached."))
    assert page.complaints() == []


class RequireKey:
    """What a gateway with keys answers, in front of what the page asks of the API."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and scope["path"].startswith(("/v1/models", "/v1/chat", "/openapi"))
        if guarded and Headers(scope=scope).get("authorization") != "Bearer sesame":
            await ApiError(401, "missing_api_key", "An API key is needed.").response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def test_a_key_is_asked_for_and_kept_in_the_tab(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(settings: Settings, network: Network | None) -> uvicorn.Server:
        server = build_server(settings, network=network)
        server.config.app.add_middleware(RequireKey)  # type: ignore[union-attr]
        return server

    monkeypatch.setattr("tests.app.conftest.build_server", guarded)
    with gateway_in_a_thread(ScriptedWorker()) as url:
        page = Playground(driver, url)
        page.until(lambda: page.find("#access").is_displayed())
        assert page.text("#access .error") == "An API key is needed."
        page.ask("hello")
        assert page.text(".turn .error") == "An API key is needed."
        assert page.driver.switch_to.active_element.get_attribute("id") == "key"
        page.find("#key").send_keys("sesame\n")
        page.until(lambda: page.text("#model") == MODEL)
        page.find(".retry").click()
        assert page.answer() == "hello"
        code = page.code("openai")
        assert 'api_key=os.environ["API_KEY"]' in code
        assert "sesame" not in code + page.code("curl") + page.code("httpx")
        stored = page.driver.execute_script(
            "return [Object.values(sessionStorage), localStorage.length, document.cookie]"
        )
        assert stored == [["sesame"], 0, ""]
        page.driver.refresh()
        page.until_ready()
        assert page.ask("again") == "again"
        assert page.complaints() == []
