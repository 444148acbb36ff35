"""One request inside the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from triton_worker.engine.adjustments import Adjustments
from triton_worker.engine.grammar import GrammarMatcher
from triton_worker.engine.kv_cache import BLOCK_TOKENS
from triton_worker.engine.messages import Generate


@dataclass(eq=False)
class Sequence:
    """A request's tokens and the KV blocks that hold them. Only the scheduler changes it."""

    request: Generate
    prompt_positions: Tensor
    """int64 ``[3, prompt tokens]``: temporal, height and width position of each prompt token."""
    next_position: int
    """Position, in all three rows, of the first generated token."""
    grammar: GrammarMatcher | None = None
    """Follows the output; only of requests that ask for one."""
    output_token_ids: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    """Tokens, from the start, whose keys and values are in the blocks."""
    adjustments: Adjustments | None = None
    """The sampler's, from the first token that needs them."""

    @property
    def request_id(self) -> str:
        """The caller's id of the request."""
        return self.request.request_id

    @property
    def token_count(self) -> int:
        """Prompt and generated tokens."""
        return len(self.request.prompt_token_ids) + len(self.output_token_ids)

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Token ids ``start`` to ``stop`` of prompt and output together."""
        prompt = self.request.prompt_token_ids
        return [*prompt[start:stop], *self.output_token_ids[max(0, start - len(prompt)) : max(0, stop - len(prompt))]]

    def positions(self, start: int, stop: int) -> Tensor:
        """Positions of tokens ``start`` to ``stop``: int64 ``[3, stop - start]``."""
        prompt_count = len(self.request.prompt_token_ids)
        generated = torch.arange(max(start, prompt_count), max(stop, prompt_count)) - prompt_count + self.next_position
        return torch.cat([self.prompt_positions[:, start:stop], generated.expand(3, -1)], dim=1)

    def cache_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the KV cache that hold tokens ``start`` to ``stop``: int64 ``[stop - start]``."""
        tokens = torch.arange(start, stop)
        return (
            torch.tensor(self.blocks, dtype=torch.int64)[tokens // BLOCK_TOKENS] * BLOCK_TOKENS + tokens % BLOCK_TOKENS
        )
