"""Work that is given up when its caller goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.types import Receive

from app.errors import ClientGone

Result = TypeVar("Result")


async def unless_disconnected(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of ``work``; cancels it and raises :class:`ClientGone` when the caller hangs up first.

    The request's body must have been read: what ``receive`` has left to say is the hang-up.
    """
    working = asyncio.current_task()
    assert working is not None
    gone = False

    async def listen() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        working.cancel()  # it waits for ``work``, which is where it learns of this

    listening = asyncio.create_task(listen())
    try:
        return await work
    except asyncio.CancelledError:
        if gone:
            raise ClientGone from None
        raise
    finally:
        listening.cancel()


async def all_of(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of ``works``, done at once, in order. Ends the others when one fails, and all when cancelled."""
    working = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*working)
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
