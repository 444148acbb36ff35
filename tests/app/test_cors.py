"""Pages of other origins are shut out unless they are let in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import ValidationError

from app.settings import Settings
from tests.app.conftest import GENERATE, Gateway, gateway_with
from tests.app.test_api_keys import BLUE, bearer, written

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE = "https://page.example"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    file = written(tmp_path_factory.mktemp("keys") / "keys", BLUE)
    async with gateway_with(cors_origins=f"{PAGE}, http://localhost:3000", api_key_file=file) as gateway:
        yield gateway


async def test_off_by_default(gateway: Gateway) -> None:
    answer = await gateway.client.options(GENERATE, headers={"Origin": PAGE} | PREFLIGHT)
    assert answer.status_code == 405
    answer = await gateway.client.get("/v1/models", headers={"Origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
async def test_a_preflight_needs_no_key(shared: Gateway, origin: str) -> None:
    answer = await shared.client.options(GENERATE, headers={"Origin": origin} | PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert "x-request-id" in answer.headers


async def test_what_the_preflight_was_for_needs_one(shared: Gateway) -> None:
    for headers, status in (({}, 401), (bearer(BLUE), 200)):
        answer = await shared.client.post(GENERATE, json={"prompt": "hello"}, headers={"Origin": PAGE} | headers)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["access-control-expose-headers"] == "X-Request-Id, Retry-After"
    assert (await shared.client.options(GENERATE)).status_code == 401


@pytest.mark.parametrize("origin", [f"{PAGE}.evil.example", "http://page.example", "null", f"{PAGE}:8443"])
async def test_other_origins(shared: Gateway, origin: str) -> None:
    assert (await shared.client.options(GENERATE, headers={"Origin": origin} | PREFLIGHT)).status_code == 400
    answer = await shared.client.get("/v1/models", headers={"Origin": origin} | bearer(BLUE))
    assert "access-control-allow-origin" not in answer.headers


async def test_all_origins() -> None:
    async with gateway_with(cors_origins="*") as gateway:
        answer = await gateway.client.get("/v1/models", headers={"Origin": "null"})
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origins", ["page.example", "https://page.example/", "https://*.example", "null"])
async def test_what_is_no_origin(origins: str) -> None:
    with pytest.raises(ValidationError):
        Settings(_env_file=None, cors_origins=origins)


async def test_origins_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIMODAL_CORS_ORIGINS", f"{PAGE},https://b.example")
    assert Settings(_env_file=None).cors_origins == (PAGE, "https://b.example")
