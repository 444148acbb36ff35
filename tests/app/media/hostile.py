"""A server that callers' URLs may lead to, each path with a trick of its own, and the network it is in."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from app.media.address import Address, is_public
from app.media.fetcher import Network
from tests.app.conftest import picture

HERE = IPv4Address("127.0.0.1")
Writer = asyncio.StreamWriter
Trick = Callable[["HostileServer", Writer], Awaitable[None]]
TRICKS: dict[str, Trick] = {}
PNG = picture()


def trick(play: Trick) -> Trick:
    TRICKS["/" + play.__name__.replace("_", "-")] = play
    return play


def head(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()


def whole(body: bytes, *headers: str) -> bytes:
    return head("200 OK", f"Content-Length: {len(body)}", *headers) + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return head(status, f"Location: {location}", "Content-Length: 0")


@trick
async def picture_(server: HostileServer, writer: Writer) -> None:
    writer.write(whole(PNG, "Content-Type: text/html"))


@trick
async def not_a_picture(server: HostileServer, writer: Writer) -> None:
    writer.write(whole(b"<svg/>", "Content-Type: image/png"))


@trick
async def missing(server: HostileServer, writer: Writer) -> None:
    writer.write(head("404 Not Found", "Content-Length: 0"))


@trick
async def compressed(server: HostileServer, writer: Writer) -> None:
    writer.write(whole(gzip.compress(bytes(10**7)), "Content-Encoding: gzip"))


@trick
async def huge_by_its_own_account(server: HostileServer, writer: Writer) -> None:
    writer.write(head("200 OK", f"Content-Length: {10**15}"))
    await endless_body(server, writer)


@trick
async def endless(server: HostileServer, writer: Writer) -> None:
    writer.write(head("200 OK"))
    await endless_body(server, writer)


async def endless_body(server: HostileServer, writer: Writer) -> None:
    while not writer.is_closing():
        writer.write(bytes(10_000))
        server.sent += 10_000
        await writer.drain()


@trick
async def drip(server: HostileServer, writer: Writer) -> None:
    writer.write(head("200 OK", "Content-Length: 1000"))
    while not writer.is_closing():
        writer.write(b"\x89")
        await writer.drain()
        await asyncio.sleep(0.02)


@trick
async def silent(server: HostileServer, writer: Writer) -> None:
    await asyncio.sleep(30)


@trick
async def huge_header(server: HostileServer, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not writer.is_closing():
        writer.write(b"x" * 10_000)
        server.sent += 10_000
        await writer.drain()


@trick
async def cut_short(server: HostileServer, writer: Writer) -> None:
    writer.write(head("200 OK", "Content-Length: 1000") + PNG)


@trick
async def not_http(server: HostileServer, writer: Writer) -> None:
    writer.write(b"220 mail.example ESMTP\r\n")


@trick
async def loop(server: HostileServer, writer: Writer) -> None:
    writer.write(redirect("/loop"))


@trick
async def one_hop(server: HostileServer, writer: Writer) -> None:
    writer.write(redirect("/picture-", "301 Moved Permanently") + b"Set-Cookie: a=b\r\n")


@trick
async def nowhere(server: HostileServer, writer: Writer) -> None:
    writer.write(head("302 Found", "Content-Length: 0"))


@trick
async def elsewhere(server: HostileServer, writer: Writer) -> None:
    writer.write(redirect(server.elsewhere))


@dataclass
class HostileServer:
    """Listens on the loopback interface, the one address that its network takes for public."""

    port: int = 0
    elsewhere: str = ""
    sent: int = 0
    open: int = 0
    requests: list[bytes] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    answers: dict[str, list[list[Address]]] = field(default_factory=dict)
    """What names resolve to, one answer after the other; the last one stays. Other names are here."""

    async def resolve(self, host: str, port: int) -> list[Address]:
        self.resolved.append(host)
        answers = self.answers.get(host, [[HERE]])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if not answer:
            raise OSError("scripted: no such name")
        return answer

    def network(self, ssl_context: ssl.SSLContext | None = None) -> Network:
        def public(address: Address) -> bool:
            return address == HERE or is_public(address)

        return Network(self.resolve, public, ssl_context or ssl.create_default_context())

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.open += 1
        try:
            self.requests.append(request := await reader.readuntil(b"\r\n\r\n"))
            await TRICKS[request.split()[1].decode()](self, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def hostile_server(**options: Any) -> AsyncIterator[HostileServer]:
    server = HostileServer()
    listening = await asyncio.start_server(server._serve, "127.0.0.1", 0, **options)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


def certificate(directory: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A self-signed certificate for ``name``: a server's context, and one that trusts it."""
    key, crt = directory / f"{name}.key", directory / f"{name}.crt"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run([*command, "-keyout", key, "-out", crt], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(crt, key)
    return server, ssl.create_default_context(cafile=crt)
