"""Several streams read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


async def interleaved(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """What all of them say, as it comes, each item with the number of its stream.

    Raises what the first of them raises. However it ends, all of them are closed.
    """
    reading = {asyncio.create_task(_next(stream)): i for i, stream in enumerate(streams)}
    try:
        while reading:
            done, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=reading.__getitem__):
                i = reading[task]
                said = task.result()
                del reading[task]
                if said:
                    reading[asyncio.create_task(_next(streams[i]))] = i
                    yield i, said[0]
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def _next(stream: AsyncGenerator[Item, None]) -> tuple[Item] | None:
    """``None`` at the end: of a task, ``StopAsyncIteration`` would be a failure."""
    try:
        return (await anext(stream),)
    except StopAsyncIteration:
        return None
