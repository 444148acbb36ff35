"""API keys: who gets in, who does not, and what a refusal says."""

import asyncio
import base64
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from app import cli, keys
from app.keys import KeyFile
from app.settings import UnusableSetting
from tests.app.conftest import GENERATE, Gateway, gateway_with
from tests.app.raw import answer_to, error_code, status

pytestmark = pytest.mark.asyncio(loop_scope="session")

BLUE = "blue-0123456789abcdef"
NAMELESS = "nameless+0123456789=="


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    file = written(tmp_path_factory.mktemp("keys") / "keys", f"# ours\n\nteam-blue {BLUE}\n{NAMELESS}\n")
    async with gateway_with(api_key_file=file, cors_origins=("https://page.example",)) as gateway:
        yield gateway


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(key: str, user: str = "me") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()}


@pytest.mark.parametrize("key", [BLUE, NAMELESS])
async def test_a_key_lets_in(guarded: Gateway, key: str) -> None:
    answer = await guarded.client.post(GENERATE, json={"prompt": "hello"}, headers=bearer(key))
    assert answer.status_code == 200
    assert (await guarded.client.get("/v1/models", headers={"authorization": f"bEARER   {key}"})).status_code == 200


async def test_probes_need_none(guarded: Gateway) -> None:
    for path in ("/v1/health", "/health/live", "/health/ready"):
        assert (await guarded.client.get(path)).status_code == 200
        assert (await guarded.client.get(path, headers=bearer("wrong"))).status_code == 200


CLOSED = ["/", "/docs", "/docs/docs.js", "/openapi.json", "/metrics", "/v1/models", GENERATE, "/nowhere", "/v1/health/"]
CLOSED += ["//health/live", "/health/live/../../metrics", "/health/live%2f..", "/HEALTH/LIVE", "/health/live;x"]


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "BREW"])
async def test_everything_else_does(guarded: Gateway, method: str, path: str) -> None:
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    answer = await answer_to(guarded.port, request)
    assert status(answer) == 401
    assert b'www-authenticate: Bearer realm="multimodal-gateway"\r\n' in answer
    assert b"x-request-id: " in answer
    if method != "HEAD":
        assert error_code(answer) == "missing_api_key"


WRONG = [
    b"Authorization: Bearer " + BLUE[:-1].encode(),
    b"Authorization: Bearer " + BLUE.encode() + b"x",
    b"Authorization: Bearer " + BLUE.upper().encode(),
    b"Authorization: Bearer",
    b"Authorization: Bearer ",
    b"Authorization:",
    b"Authorization: " + BLUE.encode(),
    b"Authorization: Token " + BLUE.encode(),
    b"Authorization: Bearer \xc3\xa9\xff" + BLUE.encode(),
    b"Authorization: Bearer " + BLUE.encode() + b" " + BLUE.encode(),
    b"Authorization: Bearer " + b"x" * 60_000,
    b"Authorization: Basic !!!",
    b"Authorization: Basic " + base64.b64encode(BLUE.encode()),
    b"Authorization: Basic " + base64.b64encode(b"me:wrong"),
    b"Authorization: Bearer " + BLUE.encode() + b"\r\nAuthorization: Bearer " + BLUE.encode(),
    b"Authorization: Bearer wrong\r\nAuthorization: Bearer " + BLUE.encode(),
]


@pytest.mark.parametrize("header", WRONG, ids=range(len(WRONG)))
async def test_what_is_no_key(guarded: Gateway, header: bytes) -> None:
    answer = await answer_to(guarded.port, b"GET /v1/models HTTP/1.0\r\n" + header + b"\r\n\r\n")
    assert (status(answer), error_code(answer)) == (401, "invalid_api_key")
    assert BLUE.encode() not in answer


@pytest.mark.parametrize("name", ["key", "api_key", "access_token", "Authorization"])
async def test_a_key_in_the_address_is_not_looked_at(guarded: Gateway, name: str) -> None:
    assert (await guarded.client.get("/v1/models", params={name: BLUE})).status_code == 401


async def test_refused_before_the_body_is_read(guarded: Gateway) -> None:
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\nExpect: 100-continue\r\n"
    answer = await answer_to(guarded.port, f"{head}Connection: close\r\n\r\n".encode())
    assert status(answer) == 401  # and no "100 Continue" before it


async def test_browsers_get_in_by_basic(guarded: Gateway) -> None:
    page = await guarded.client.get("/docs", headers={"Accept": "text/html,*/*"})
    assert page.status_code == 401
    assert ", Basic realm=" in page.headers["www-authenticate"]
    assert (await guarded.client.get("/docs", headers=basic(BLUE))).status_code == 200
    assert (await guarded.client.get("/docs", headers=basic(BLUE, user=""))).status_code == 200
    own = {"Origin": f"http://127.0.0.1:{guarded.port}"}
    answer = await guarded.client.post(GENERATE, json={"prompt": "hello"}, headers=basic(BLUE) | own)
    assert answer.status_code == 200


@pytest.mark.parametrize("origin", ["https://page.example", "null", "http://127.0.0.1", "http://evil.example"])
async def test_another_site_cannot_use_the_browsers_password(guarded: Gateway, origin: str) -> None:
    headers = basic(BLUE) | {"Origin": origin}
    answer = await guarded.client.post(GENERATE, files={"prompt": (None, "hello")}, headers=headers)
    assert answer.status_code == 401
    assert "Basic" not in answer.headers["www-authenticate"]


async def test_log_and_metrics_tell_names_not_keys(guarded: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for key, request_id in ((BLUE, "by-blue"), (NAMELESS, "by-line"), ("wrong", "by-nobody")):
        await guarded.client.get("/v1/models", headers=bearer(key) | {"X-Request-Id": request_id})
    await asyncio.sleep(0.05)
    lines = {getattr(record, "request_id", ""): record for record in caplog.records}
    assert getattr(lines["by-blue"], "key_name", None) == "team-blue"
    assert getattr(lines["by-line"], "key_name", None) == "line-4"
    assert getattr(lines["by-nobody"], "key_name", None) is None
    assert getattr(lines["by-nobody"], "status", None) == 401
    metrics = (await guarded.client.get("/metrics", headers=bearer(BLUE))).text
    assert 'multimodal:key_requests_total{key_name="team-blue",status="200"}' in metrics
    for secret in (BLUE, NAMELESS):
        assert secret not in metrics + caplog.text


async def test_the_document_says_so(guarded: Gateway) -> None:
    document = (await guarded.client.get("/openapi.json", headers=bearer(BLUE))).json()
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert document["security"] == [{"key": []}]
    assert document["paths"]["/health/live"]["get"]["security"] == []
    assert "401" in document["paths"][GENERATE]["post"]["responses"]


async def test_the_file_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.0)
    path = written(tmp_path / "keys", f"a {BLUE}\n")
    file = KeyFile(path)
    assert (file.name_of(BLUE.encode()), file.name_of(NAMELESS.encode())) == ("a", None)
    os.replace(written(tmp_path / "new", f"b {NAMELESS}\n"), path)
    assert (file.name_of(BLUE.encode()), file.name_of(NAMELESS.encode())) == (None, "b")
    path.write_text("too-short\n")
    assert file.name_of(NAMELESS.encode()) == "b"
    path.unlink()
    assert file.name_of(NAMELESS.encode()) == "b"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no key"),
        ("# nothing\n\n", "holds no key"),
        ("\n0123456789abcde", "line 2: a key has 16 to 512 characters, and this one 15"),
        ("x" * 513, "16 to 512"),
        ("ключ-ключ-ключ-ключ", "made of letters"),
        ("a b 0123456789abcdef", "line 1: write a key, or a name and a key"),
        ("na{me 0123456789abcdef", "a name has"),
        (f"a {BLUE}\nb {BLUE}", "line 2: this key stands in the file already"),
    ],
)
async def test_a_useless_file(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UnusableSetting, match=complaint) as refused:
        KeyFile(written(tmp_path / "keys", text))
    assert "\n" not in str(refused.value)
    assert BLUE not in str(refused.value)


async def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"multimodal-gateway: api_key_file .*: No such file or directory") as stop:
        cli.main(["--host", "127.0.0.1", "--port", "18497", "--api_key_file", str(tmp_path / "none")])
    assert "\n" not in str(stop.value)
    with pytest.raises(UnusableSetting, match="Is a directory"):
        KeyFile(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UnusableSetting, match="not UTF-8"):
        KeyFile(tmp_path / "binary")


async def test_a_file_that_others_can_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "keys", BLUE)
    KeyFile(path)
    assert not caplog.records
    path.chmod(0o644)
    KeyFile(path)
    assert "can be read by other users" in caplog.text
