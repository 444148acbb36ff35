"""What holds for every route: the envelope, limits, ids, the log."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from app.errors import INTERNAL_MESSAGE
from app.log import JsonFormatter
from app.middleware.last_resort import LastResort
from app.middleware.request_id import RequestId
from tests.app.conftest import GENERATE, Gateway
from tests.app.raw import all_of
from tests.app.scripted_worker import MODEL

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_health(gateway: Gateway) -> None:
    for path in ("/v1/health", "/health/live"):
        answer = await gateway.client.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    answer = await gateway.client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


async def test_models(gateway: Gateway) -> None:
    answer = (await gateway.client.get("/v1/models")).json()
    assert answer["object"] == "list"
    (model,) = answer["data"]
    assert (await gateway.client.get(f"/v1/models/{MODEL}")).json() == model
    assert model.pop("created") > 1_600_000_000
    assert model == {"id": MODEL, "object": "model", "owned_by": "local", "context_length": 4096}
    another = await gateway.client.get("/v1/models/another")
    assert (another.status_code, another.json()["error"]["code"]) == (404, "model_not_found")


async def test_unknown_path_and_method(gateway: Gateway) -> None:
    answer = await gateway.client.get("/nowhere")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = await gateway.client.get(GENERATE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


async def test_body_limit_by_announced_length(gateway: Gateway) -> None:
    answer = await gateway.client.post(GENERATE, content=b"x" * 200_001, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert "x-request-id" in answer.headers


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=b"])
async def test_body_limit_by_counting(gateway: Gateway, content_type: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        for _ in range(30):
            yield b"x" * 10_000

    answer = await gateway.client.post(GENERATE, content=endless(), headers={"Content-Type": content_type})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] in ("body_too_large", "picture_too_large")


async def test_large_headers_are_refused(gateway: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /v1/health HTTP/1.1\r\nHost: x\r\nX-Big: " + b"x" * 1_000_000)
    answer = await all_of(reader)
    writer.close()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


async def test_request_id_is_kept_if_sane(gateway: Gateway) -> None:
    answer = await gateway.client.get("/v1/health", headers={"X-Request-Id": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"
    for odd in ("", "a b", "x" * 129, '"quoted"'):
        answer = await gateway.client.get("/nowhere", headers={"X-Request-Id": odd})
        assert answer.headers["x-request-id"] not in ("", odd)


async def test_log_line_has_no_prompt(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.access")
    await gateway.client.post(
        GENERATE + "?key=secret", json={"prompt": "secret words"}, headers={"X-Request-Id": "log-me"}
    )
    await asyncio.sleep(0.05)
    (record,) = [record for record in caplog.records if getattr(record, "request_id", None) == "log-me"]
    text = JsonFormatter().format(record)
    line = json.loads(text)
    assert (line["method"], line["path"], line["status"]) == ("POST", GENERATE, 200)
    assert line["generation_id"] == gateway.worker.submits[-1].request_id
    assert gateway.worker.submits[-1].http_request_id == "log-me"
    assert line["duration_ms"] > 0
    assert "secret" not in text


async def test_what_nobody_foresaw_is_a_plain_500(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    app.add_middleware(LastResort)
    app.add_middleware(RequestId)

    @app.get("/")
    async def broken() -> None:
        raise RuntimeError("/secret/path")

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        answer = await client.get("/", headers={"X-Request-Id": "find-me"})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == INTERNAL_MESSAGE
    assert answer.headers["x-request-id"] == "find-me"
    (record,) = [record for record in caplog.records if getattr(record, "request_id", None) == "find-me"]
    assert record.exc_info
