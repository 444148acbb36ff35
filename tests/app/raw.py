"""HTTP over bare sockets, for what no client library would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any


async def answer_to(port: int, request: bytes, seconds: float = 10.0) -> bytes:
    """All that comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(all_of(reader), seconds)
    finally:
        writer.close()


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends; a server that leaves bytes unread ends it with a reset."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := await reader.read(65536):
            received += piece
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error_code(answer: bytes) -> str:
    error: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return str(error["code"])
