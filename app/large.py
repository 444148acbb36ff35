"""Work that takes as long as its data is large: not for the event loop, unless it is done sooner than handed over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

LARGE_BYTES = 16 * 1024
"""To read so much as JSON, or as the header of a picture, takes about a millisecond at most."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


async def in_thread_if_large(
    size: int, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """What ``work``, which has to go through ``size`` bytes, returns or raises."""
    if size < LARGE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
