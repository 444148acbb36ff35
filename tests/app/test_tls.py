"""TLS, and client certificates."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from app import cli
from app.settings import Settings, UnusableSetting
from app.tls import tls_options
from tests.app.conftest import ready, worker_settings
from tests.app.conftest import serving as serving_http
from tests.app.scripted_worker import ScriptedWorker

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(folder / "chain.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().issue_cert("x").private_key_pem.write_to_path(folder / "other.pem")
    (folder / "rubbish.pem").write_text("rubbish")
    return {path.stem: path for path in folder.iterdir()}


@asynccontextmanager
async def serving(authority: trustme.CA, **settings: Any) -> AsyncIterator[tuple[ssl.SSLContext, str]]:
    worker = ScriptedWorker()
    await worker.start()
    try:
        async with serving_http(worker_settings(worker, **settings)) as (_, port):
            context = ssl.create_default_context()
            authority.configure_trust(context)
            yield context, f"https://127.0.0.1:{port}"
    finally:
        await worker.stop()


def caller(context: ssl.SSLContext, url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, verify=context, trust_env=False, timeout=20)


@pytest.mark.parametrize("together", [False, True])
async def test_https(authority: trustme.CA, files: dict[str, Path], together: bool) -> None:
    given = {"tls_certificate": files["both"]} if together else {}
    given = given or {"tls_certificate": files["chain"], "tls_key": files["key"]}
    async with serving(authority, **given) as (context, url), caller(context, url) as client:
        await ready(client)
        answer = await client.post("/v1/multimodal/generate", json={"prompt": "slowly a b", "params": {"stream": True}})
        assert answer.text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.TransportError):
            await httpx.AsyncClient(trust_env=False).get(url.replace("https", "http"))


async def test_a_client_certificate_is_needed_but_by_probes(authority: trustme.CA, files: dict[str, Path]) -> None:
    given = {"tls_certificate": files["chain"], "tls_key": files["key"], "tls_client_ca": files["ca"]}
    async with serving(authority, **given) as (context, url):
        async with caller(context, url) as client:
            await ready(client)
            answer = await client.get("/v1/models")
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_certificate")
        authority.issue_cert("caller@example.org").configure_cert(context)
        async with caller(context, url) as client:
            assert (await client.get("/v1/models")).status_code == 200
        context = ssl.create_default_context()
        authority.configure_trust(context)
        trustme.CA().issue_cert("caller@example.org").configure_cert(context)
        async with caller(context, url) as client:
            with pytest.raises(httpx.TransportError):
                await client.get("/health/live")


async def test_a_stopped_reader_over_tls(authority: trustme.CA, files: dict[str, Path]) -> None:
    given = {"tls_certificate": files["both"], "write_seconds": 0.5, "head_seconds": 0.5}
    async with serving(authority, **given) as (context, url), caller(context, url) as client:
        await ready(client)
        port = httpx.URL(url).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, limit=1024)
        assert await reader.read(-1) == b"", "a head that does not come"
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, limit=1024)
        asked = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
        writer.write(asked * 20)  # 30 MB
        await reader.readline()
        for _ in range(200):
            metrics = (await client.get("/metrics")).text
            if 'multimodal:connections_cut_total{reason="write"} 1.0' in metrics:
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the connection stays open")
        writer.transport.abort()


@pytest.mark.parametrize(
    ("certificate", "key", "client_ca", "complaint"),
    [
        ("chain", "other", None, "is not the key of tls_certificate"),
        ("chain", None, None, "must hold a certificate chain and its private key"),
        ("rubbish", "key", None, "must hold a certificate chain"),
        ("chain", "rubbish", None, "must hold a certificate chain"),
        ("chain", "none", None, "tls_key .*none.pem cannot be read: No such file"),
        ("chain", "key", "rubbish", "tls_client_ca .* must hold certificates"),
        (None, "key", None, "tls_key needs a certificate"),
        (None, None, "ca", "tls_client_ca needs a certificate"),
    ],
)
async def test_wrong_files(
    files: dict[str, Path], certificate: str | None, key: str | None, client_ca: str | None, complaint: str
) -> None:
    given = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": client_ca}
    named = {name: files["ca"].parent / f"{stem}.pem" for name, stem in given.items() if stem}
    with pytest.raises(UnusableSetting, match=complaint) as refused:
        tls_options(Settings(_env_file=None, **named))
    assert "\n" not in str(refused.value)


async def test_wrong_files_are_one_line_at_start(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"multimodal-gateway: tls_certificate .* cannot be read") as stop:
        cli.main(["--host", "127.0.0.1", "--port", "18496", "--tls_certificate", str(tmp_path / "none")])
    assert "\n" not in str(stop.value)
