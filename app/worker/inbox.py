"""Where one request's deltas wait for their reader."""

from __future__ import annotations

import asyncio
from itertools import chain

from protocol.messages import Delta, EndDelta, TokenDelta

MERGE_AT = 256
"""A reader so far behind gets its deltas merged, so that what waits is about the size of the text itself."""


class Inbox:
    """A queue that never refuses and stays small: what a slow reader has not taken yet becomes one delta a choice."""

    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._arrived = asyncio.Event()

    def put(self, delta: Delta) -> None:
        self._deltas.append(delta)
        if len(self._deltas) > MERGE_AT:
            self._deltas = merged(self._deltas)
        self._arrived.set()

    async def take(self) -> list[Delta]:
        """All that arrived since the last time, at least one delta; the end, if it is there, is last."""
        await self._arrived.wait()
        self._arrived.clear()
        deltas, self._deltas = self._deltas, []
        return merged(deltas)


def merged(deltas: list[Delta]) -> list[Delta]:
    """The same, said in one delta for each choice."""
    if len(deltas) < 2:
        return deltas
    choices: dict[int, list[TokenDelta]] = {}
    ends: list[EndDelta] = []
    for delta in deltas:
        if isinstance(delta, EndDelta):
            ends.append(delta)
        else:
            choices.setdefault(delta.index, []).append(delta)
    return [*map(_joined, choices.values()), *ends]


def _joined(parts: list[TokenDelta]) -> TokenDelta:
    first, last = parts[0], parts[-1]
    if first is last:
        return first
    return TokenDelta(
        request_id=first.request_id,
        index=first.index,
        text="".join(part.text for part in parts),
        token_ids=tuple(chain.from_iterable(part.token_ids for part in parts)),
        logprobs=tuple(chain.from_iterable(part.logprobs for part in parts)),
        finish_reason=last.finish_reason,
        prompt_token_ids=first.prompt_token_ids,
    )
