"""Callers that hold a connection without using it lose it; what they asked for is cancelled."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.app.conftest import GENERATE, Gateway, gateway_with, until
from tests.app.raw import all_of, answer_to, error_code, status

pytestmark = pytest.mark.asyncio(loop_scope="session")

HEAD = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def impatient() -> AsyncIterator[Gateway]:
    async with gateway_with(head_seconds=0.5, body_seconds=0.5, write_seconds=0.5) as gateway:
        yield gateway


async def cut(gateway: Gateway, reason: str) -> float:
    metrics = (await gateway.client.get("/metrics")).text
    lines = [
        line
        for line in metrics.splitlines()
        if line.startswith(f'multimodal:connections_cut_total{{reason="{reason}"}}')
    ]
    return float(lines[0].split()[-1]) if lines else 0.0


async def drip(port: int, first: bytes, drop: bytes) -> bytes:
    """Sends ``drop`` again and again; what came back until the connection was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    answer = asyncio.create_task(all_of(reader))
    deadline = time.monotonic() + 15
    while not answer.done():
        assert time.monotonic() < deadline, "the connection stays open"
        writer.write(drop)
        await asyncio.sleep(0.05)
    writer.close()
    return answer.result()


@pytest.mark.parametrize("begun", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_a_head_that_does_not_come(impatient: Gateway, begun: bytes) -> None:
    before = await cut(impatient, "head")
    assert await answer_to(impatient.port, begun) == b""
    assert await cut(impatient, "head") > before


async def test_a_connection_is_kept_for_the_next_request_and_not_for_ever() -> None:
    async with gateway_with(keep_alive_seconds=1) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        for _ in range(2):
            writer.write(LIVE)
            assert status(await reader.readuntil(b"}")) == 200
            await asyncio.sleep(0.2)
        assert await asyncio.wait_for(reader.read(), 4) == b""
        writer.close()


@pytest.mark.parametrize("head_before", [True, False])
async def test_a_body_in_crumbs(impatient: Gateway, head_before: bool) -> None:
    before = await cut(impatient, "crumbs")
    reader, writer = await asyncio.open_connection("127.0.0.1", impatient.port)
    writer.write(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
    if head_before:
        await writer.drain()
        await asyncio.sleep(0.1)
    writer.write(b"1\r\n \r\n" * 10_000)
    assert await asyncio.wait_for(all_of(reader), 10) == b""
    assert await cut(impatient, "crumbs") == before + 1
    writer.close()


async def test_a_body_in_small_pieces_is_read(gateway: Gateway) -> None:
    body = json.dumps({"prompt": "x" * 9_000}).encode()
    pieces = b"".join(b"10\r\n%s\r\n" % body[at : at + 16].ljust(16) for at in range(0, len(body), 16))
    asked = f"{HEAD}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + pieces + b"0\r\n\r\n"
    assert status(await answer_to(gateway.port, asked)) == 200


async def test_a_dripping_head(impatient: Gateway) -> None:
    assert await drip(impatient.port, b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n") == b""


async def test_a_dripping_second_head(impatient: Gateway) -> None:
    answer = await drip(impatient.port, LIVE + b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("length", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
async def test_a_slow_body(impatient: Gateway, length: str) -> None:
    answer = await drip(impatient.port, f"{HEAD}{length}\r\n\r\n".encode(), b"1\r\nx\r\n")
    assert (status(answer), error_code(answer)) == (408, "body_timeout")
    assert b"connection: close" in answer.lower()


async def test_a_slow_body_that_nobody_wants(impatient: Gateway) -> None:
    """Answered at once; what still comes of the body does not keep the connection."""
    answer = await drip(impatient.port, b"GET /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", b"x")
    assert status(answer) == 404


async def test_a_reader_that_stops_reading(impatient: Gateway) -> None:
    """Its socket's buffers are filled, then the gateway's own, and then it is enough."""
    before = await cut(impatient, "write")
    reader, writer = await asyncio.open_connection("127.0.0.1", impatient.port, limit=1024)
    body = json.dumps({"prompt": "flood 400000", "stream": True}).encode()
    writer.write(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await reader.readline()
    known = len(impatient.worker.cancelled)
    await until(lambda: len(impatient.worker.cancelled) > known, 20)
    assert await cut(impatient, "write") == before + 1
    assert impatient.worker.running == 0
    writer.close()


async def test_a_slow_but_steady_reader_is_no_stopped_one(impatient: Gateway) -> None:
    """It takes longer than ``write_seconds`` in all."""
    reader, writer = await asyncio.open_connection("127.0.0.1", impatient.port, limit=1024)
    body = json.dumps({"prompt": "flood 30000", "stream": True}).encode()
    writer.write(f"{HEAD}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    end = b""
    began = time.monotonic()
    while piece := await reader.read(300_000):
        end = (end + piece)[-100:]
        await asyncio.sleep(0.02)
    writer.close()
    assert time.monotonic() - began > 0.5
    assert b"[DONE]" in end


async def test_a_stream_that_is_quiet_for_long_is_no_slow_reader(impatient: Gateway) -> None:
    async with impatient.client.stream("POST", GENERATE, json={"prompt": "start_and_hang", "stream": True}) as answer:
        lines = answer.aiter_lines()
        assert await anext(lines)
        known = len(impatient.worker.cancelled)
        await asyncio.sleep(1.2)
        assert len(impatient.worker.cancelled) == known


async def test_many_connections() -> None:
    async with gateway_with(max_connections=3) as gateway:
        await gateway.client.aclose()
        await asyncio.sleep(0.1)
        idle = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(3)]
        await asyncio.sleep(0.1)
        request = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await answer_to(gateway.port, request)
        assert (status(answer), error_code(answer)) == (503, "too_many_connections")
        assert b"retry-after: " in answer
        live = await answer_to(gateway.port, LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert status(live) == 200
        for _, writer in idle:
            writer.close()
        await asyncio.sleep(0.1)
        answer = await answer_to(gateway.port, request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert status(answer) == 200


SMUGGLING = [
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "Content-Length: 5\r\nContent-Length: 6\r\n",
    "Content-Length: 5, 6\r\n",
    "Content-Length: +5\r\n",
    "Content-Length: 0x5\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
]


@pytest.mark.parametrize("lengths", SMUGGLING)
async def test_two_ways_to_read_a_request_are_none(gateway: Gateway, lengths: str) -> None:
    answer = await answer_to(gateway.port, f"{HEAD}{lengths}\r\n0\r\n\r\n".encode() + LIVE)
    assert (status(answer), error_code(answer)) == (400, "invalid_request")
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows is not read as a request"


@pytest.mark.parametrize("rubbish", [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
async def test_what_is_not_http(gateway: Gateway, rubbish: bytes) -> None:
    answer = await answer_to(gateway.port, rubbish + b"\r\n\r\n")
    assert (status(answer), error_code(answer)) == (400, "invalid_request")


async def test_a_broken_chunk_in_mid_body(gateway: Gateway) -> None:
    answer = await answer_to(gateway.port, f"{HEAD}Transfer-Encoding: chunked\r\n\r\nnot a size\r\n".encode())
    assert status(answer) == 400
    assert (await gateway.generate("hello")).status_code == 200


async def test_pipelined_requests_are_answered_in_turn(gateway: Gateway) -> None:
    last = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = await answer_to(gateway.port, LIVE * 20 + last)
    assert answer.count(b"HTTP/1.1 200") == 21


@pytest.mark.parametrize("length", ["Content-Length: 19", "Transfer-Encoding: chunked"])
async def test_an_offer_of_another_protocol_is_passed_over(gateway: Gateway, length: str) -> None:
    """Java's HttpClient makes it with every request; uvicorn's httptools loses the body of such a request."""
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    body = json.dumps({"prompt": "hello"})
    if "chunked" in length:
        body = f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"
    last = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = await answer_to(gateway.port, f"{HEAD}{offer}{length}\r\n\r\n{body}".encode() + last)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b'"text":"hello"' in answer
