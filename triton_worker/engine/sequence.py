"""One request inside the engine."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from triton_worker.engine.adjustments import Adjustments
from triton_worker.engine.block_keys import block_key, root_key
from triton_worker.engine.grammar import GrammarMatcher
from triton_worker.engine.kv_cache import BLOCK_TOKENS
from triton_worker.engine.messages import Generate, Picture
from triton_worker.engine.picture_context import PictureContext, PictureRun, runs_of


@dataclass(frozen=True)
class PictureSpan:
    """Prompt tokens ``start`` to ``stop``, which stand for one picture."""

    start: int
    stop: int
    picture: Picture

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether any of the tokens ``start`` to ``stop`` stands for the picture."""
        return self.start < stop and start < self.stop


@dataclass(eq=False)
class Sequence:
    """A request's tokens and the KV blocks that hold them. Only the scheduler changes it."""

    request: Generate
    prompt_positions: Tensor
    """int64 ``[3, prompt tokens]``: temporal, height and width position of each prompt token."""
    next_position: int
    """Position, in all three rows, of the first generated token."""
    pictures: tuple[PictureSpan, ...] = ()
    """In the order of the prompt."""
    contexts: tuple[PictureContext, ...] = ()
    """The same pictures where cross-attention layers read them: their embeddings then stand in no token's place."""
    grammar: GrammarMatcher | None = None
    """Follows the output; only of requests that ask for one."""
    output_token_ids: list[int] = field(default_factory=list)
    blocks: array[int] = field(default_factory=lambda: array("i"))
    computed_tokens: int = 0
    """Tokens, from the start, whose keys and values are in the blocks, or will be before any later step reads them."""
    reused_tokens: int = 0
    """Those of them that others, or the sequence itself before it was preempted, had computed."""
    pending_row: int | None = None
    """Row of the step under way that draws the next token, which is only known when that step has ended."""
    ended: bool = False
    """Whether it has its last token or was dropped."""
    arrival: int = 0
    """Place in the order of arrival."""
    started_at: float | None = None
    """When it was first scheduled, on the scheduler's clock."""
    cached_tokens: int = 0
    """:attr:`reused_tokens` when it was first scheduled."""
    _block_keys: list[bytes] = field(default_factory=list)
    adjustments: Adjustments | None = None
    """The sampler's, from the first token that needs them."""

    @property
    def request_id(self) -> str:
        """The caller's id of the request."""
        return self.request.request_id

    @property
    def token_count(self) -> int:
        """Prompt and generated tokens, with the one that is being drawn."""
        return len(self.request.prompt_token_ids) + self._output_count

    @property
    def is_decoding(self) -> bool:
        """Whether only its last token is still to be computed."""
        return self.computed_tokens == self.token_count - 1

    @property
    def is_drawn_out(self) -> bool:
        """Whether the token that is being drawn is its last one."""
        return self._output_count >= self.request.max_tokens

    @property
    def _output_count(self) -> int:
        return len(self.output_token_ids) + (self.pending_row is not None)

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Token ids ``start`` to ``stop`` of prompt and output together, as far as they are known."""
        prompt = self.request.prompt_token_ids
        return [*prompt[start:stop], *self.output_token_ids[max(0, start - len(prompt)) : max(0, stop - len(prompt))]]

    def decode_token(self, place: int) -> tuple[int, int]:
        """The token at ``place``, and -1; or 0 and the row of the step under way that draws it."""
        token_ids = self.token_ids(place, place + 1)
        if token_ids:
            return token_ids[0], -1
        assert self.pending_row is not None
        return 0, self.pending_row

    def position(self, place: int) -> int:
        """Position, in all three rows, of a token that is text."""
        generated = place - len(self.request.prompt_token_ids)
        return self.next_position + generated if generated >= 0 else int(self.prompt_positions[0, place])

    def positions(self, start: int, stop: int) -> Tensor:
        """Positions of tokens ``start`` to ``stop``: int64 ``[3, stop - start]``."""
        prompt_count = len(self.request.prompt_token_ids)
        generated = torch.arange(max(start, prompt_count), max(stop, prompt_count)) - prompt_count + self.next_position
        return torch.cat([self.prompt_positions[:, start:stop], generated.expand(3, -1)], dim=1)

    def picture_runs(self, start: int, stop: int) -> list[PictureRun]:
        """Tokens ``start`` to ``stop``, cut into runs that see the same pictures."""
        return runs_of(self.contexts, start, stop)

    def cache_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the KV cache that hold tokens ``start`` to ``stop``: int64 ``[stop - start]``."""
        tokens = np.arange(start, stop)
        blocks = np.frombuffer(self.blocks, dtype=np.int32).astype(np.int64)
        return torch.from_numpy(blocks[tokens // BLOCK_TOKENS] * BLOCK_TOKENS + tokens % BLOCK_TOKENS)

    def block_keys(self, start: int, stop: int) -> list[bytes]:
        """Keys of the blocks that are full with the first ``stop`` tokens, from the block of token ``start`` on.

        A token that is being drawn fills no block yet.
        """
        stop = min(stop, len(self.request.prompt_token_ids) + len(self.output_token_ids))
        while len(self._block_keys) < stop // BLOCK_TOKENS:
            parent = self._block_keys[-1] if self._block_keys else root_key(self.request.cache_salt)
            first = len(self._block_keys) * BLOCK_TOKENS
            end = first + BLOCK_TOKENS
            pictures = (
                (max(first, span.start) - first, max(first, span.start) - span.start, span.picture.digest)
                for span in self.pictures
                if span.overlaps(first, end)
            )
            self._block_keys.append(block_key(parent, self.token_ids(first, end), pictures))
        return self._block_keys[start // BLOCK_TOKENS : stop // BLOCK_TOKENS]
