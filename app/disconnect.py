"""Work that is given up when its caller goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from starlette.types import Receive

from app.errors import ClientGone

Result = TypeVar("Result")


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``; cancels it and raises :class:`ClientGone` when the caller hangs up first.

    The request's body must have been read: what ``receive`` has left to say is the hang-up.
    """
    working = asyncio.create_task(work)
    listening = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        listening.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def all_of(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of ``works``, done at once, in order. Ends the others when one fails, and all when cancelled."""
    working = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*working)
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
