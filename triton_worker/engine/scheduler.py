"""Which tokens of which requests the next step computes."""

from __future__ import annotations

import bisect
import itertools
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from protocol.messages import FinishReason
from triton_worker.engine.block_pool import BlockPool
from triton_worker.engine.kv_cache import BLOCK_TOKENS, blocks_for
from triton_worker.engine.messages import FirstToken, NewToken
from triton_worker.engine.picture_context import PictureContext
from triton_worker.engine.sequence import PictureSpan, Sequence


@dataclass(frozen=True)
class _Found:
    """What is known of a waiting sequence before it is started."""

    blocks: list[int]
    """Those of its beginning."""
    contexts: list[tuple[PictureContext, list[int]]]
    """The pictures that the rest of it sees, with their blocks; without any where one is not known."""
    new: int
    """Blocks that it needs beside."""

    @property
    def shared(self) -> list[int]:
        """All known blocks."""
        return [*self.blocks, *(block for _, blocks in self.contexts for block in blocks)]


@dataclass(frozen=True)
class Chunk:
    """Tokens ``start`` to ``stop`` of one sequence. A decode chunk is one token long."""

    sequence: Sequence
    start: int
    stop: int
    reaches_end: bool
    """Whether the next token is sampled after this chunk."""

    @property
    def pictures(self) -> list[PictureSpan]:
        """The pictures that tokens of this chunk stand for."""
        return [span for span in self.sequence.pictures if span.overlaps(self.start, self.stop)]

    @property
    def new_contexts(self) -> list[PictureContext]:
        """Pictures beside the sequence whose keys and values this chunk is the first to need."""
        held = (context for context in self.sequence.contexts if context.blocks and not context.is_computed)
        return [context for context in held if context.start < self.stop]


class Scheduler:
    """First come, first served; the state of all sequences changes here and nowhere else.

    A sequence waits, without KV blocks, or runs, with blocks for all its tokens. Every step decodes one token of each
    running sequence whose prompt is computed. Beside that it prefills up to ``max_prefill_tokens`` tokens: the rest of
    a prompt that an earlier step began (between two steps there is at most one), then waiting prompts in the order of
    their arrival. When a running sequence needs a block and none is free, the youngest is preempted: it gives its
    blocks back, waits in its old place, and is computed again as far as its blocks were forgotten.

    A step is scheduled, launched and, when its tokens are known, completed. The next one may be scheduled as soon as
    it is launched: a device computes one after the other, so what a launched step writes is there for later ones, and
    blocks that it still writes to may already be another's. It must be launched after the first one is completed.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_sequences: int,
        max_prefill_tokens: int,
        prefix_cache: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``prefix_cache``: whether sequences that begin alike share the blocks of their beginning."""
        self._pool = pool
        self._max_sequences = max_sequences
        self._max_prefill_tokens = max_prefill_tokens
        self._prefix_cache = prefix_cache
        self._clock = clock
        self._arrivals = 0
        self._waiting: list[Sequence] = []  # in order of arrival
        self._running: list[Sequence] = []  # in the order in which they were started
        self.preemptions = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.picture_queries = 0
        self.picture_hits = 0

    @property
    def waiting_count(self) -> int:
        """Sequences that have no KV blocks yet."""
        return len(self._waiting)

    @property
    def running_count(self) -> int:
        """Sequences that hold KV blocks."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._waiting.append(sequence)

    def abort(self, request_id: str) -> bool:
        """Drop a sequence and free its blocks; whether there was one."""
        for sequences in (self._running, self._waiting):
            for sequence in sequences:
                if sequence.request_id == request_id:
                    sequences.remove(sequence)
                    self._end(sequence)
                    return True
        return False

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step: first all of one decoded token each, then prefills.

        Empty when nothing waits or runs, or all that could be computed follows from a token that is being drawn.
        """
        self._grow_running()
        decodes = [_decode(s) for s in self._running if s.is_decoding and not s.is_drawn_out]
        prefills: list[Chunk] = []
        budget = self._max_prefill_tokens
        for sequence in self._running:
            if not sequence.is_decoding:
                prefills.append(_prefill(sequence, budget))
                budget -= prefills[-1].stop - prefills[-1].start
        return decodes + prefills + self._admit(budget)

    def launch(self, chunks: list[Chunk]) -> None:
        """The device is computing the step that these chunks were scheduled for."""
        rows = itertools.count()
        for chunk in chunks:
            row = next(rows) if chunk.reaches_end else None
            if not chunk.sequence.ended:
                self._advance(chunk)
                chunk.sequence.pending_row = row

    def complete(self, chunks: list[Chunk], token_ids: list[int]) -> list[NewToken]:
        """Take a launched step's result: the token sampled after each chunk that reaches its end, in order.

        What was sampled for sequences that have ended since is left out.
        """
        now = self._clock()
        ends = [chunk.sequence for chunk in chunks if chunk.reaches_end]
        return [self._append(s, token_id, now) for s, token_id in zip(ends, token_ids, strict=True) if not s.ended]

    def _grow_running(self) -> None:
        """Give each running sequence the block its next token needs, preempting the youngest where none is free."""
        for sequence in list(self._running):
            while sequence in self._running and not sequence.is_drawn_out:
                missing = blocks_for(sequence.token_count) - len(sequence.blocks)
                if missing <= self._pool.free_count:
                    sequence.blocks.extend(self._pool.take(missing))
                    break
                self._preempt(max(self._running, key=_arrival))

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        bisect.insort(self._waiting, sequence, key=_arrival)
        self.preemptions += 1

    def _admit(self, budget: int) -> list[Chunk]:
        """Start waiting sequences, in order, while sequences, tokens and blocks allow.

        One whose next unknown block is being computed by a running sequence is passed over until it can share it. It
        waits for nothing else than that: when the other one ends or is preempted, this one is the first to be started.
        """
        chunks: list[Chunk] = []
        waiting = list(self._waiting)
        coming = {key for running in self._running if waiting for key in self._keys_to_come(running)}
        for sequence in waiting:
            if budget == 0 or len(self._running) == self._max_sequences or sequence.pending_row is not None:
                break
            found, missing = self._find(sequence)
            if not coming.isdisjoint(missing):
                continue
            # One more block for each running one: else it would not stay long.
            if not self._pool.has_room(found.new + len(self._running), found.shared):
                break
            self._waiting.remove(sequence)
            self._start(sequence, found)
            coming.update(self._keys_to_come(sequence))
            chunks.append(_prefill(sequence, budget))
            budget -= chunks[-1].stop - chunks[-1].start
        return chunks

    def _find(self, sequence: Sequence) -> tuple[_Found, list[bytes]]:
        """What is known, and the keys of the blocks that would help next if they were."""
        # The last token is always computed: its logits are needed.
        keys = self._keys(sequence, 0, sequence.token_count - 1)
        blocks = self._pool.find(keys)
        missing = keys[len(blocks) : len(blocks) + 1]
        new = blocks_for(sequence.token_count) - len(blocks)
        contexts: list[tuple[PictureContext, list[int]]] = []
        for context in sequence.contexts:
            if context.stop <= len(blocks) * BLOCK_TOKENS:
                continue
            wanted = self._context_keys(sequence, context)
            known = self._pool.find(wanted)
            if len(known) < context.block_count:
                missing += wanted[:1]
                new += context.block_count
                known = []
            contexts.append((context, known))
        return _Found(blocks, contexts, new), missing

    def _start(self, sequence: Sequence, found: _Found) -> None:
        self._pool.share(found.shared)
        new = self._pool.take(found.new)
        for context, known in found.contexts:
            context.is_computed = bool(known)
            context.blocks = array("i", known or [new.pop() for _ in range(context.block_count)])
        sequence.blocks = array("i", found.blocks + new)
        sequence.computed_tokens = sequence.reused_tokens = len(found.blocks) * BLOCK_TOKENS
        if sequence.started_at is None:
            sequence.started_at = self._clock()
            sequence.cached_tokens = sequence.reused_tokens
            if self._prefix_cache:
                self.prefix_queries += sequence.token_count
                self.prefix_hits += sequence.reused_tokens
            self.picture_queries += sum(len(context.pictures) for context, _ in found.contexts)
            self.picture_hits += sum(len(context.pictures) for context, known in found.contexts if known)
        self._running.append(sequence)

    def _advance(self, chunk: Chunk) -> None:
        """The chunk's keys and values come into the cache: later steps may share the blocks that it fills."""
        sequence = chunk.sequence
        if chunk.start < len(sequence.request.prompt_token_ids) or chunk.stop - chunk.start > 1:
            self.prefill_tokens += chunk.stop - chunk.start
        filled = self._keys(sequence, chunk.start, chunk.stop)
        for place, key in enumerate(filled, start=chunk.start // BLOCK_TOKENS):
            self._pool.remember(sequence.blocks[place], key)
        for context in chunk.new_contexts:
            for block, key in zip(context.blocks, self._context_keys(sequence, context), strict=False):
                self._pool.remember(block, key)
            context.is_computed = True
        sequence.computed_tokens = chunk.stop

    def _append(self, sequence: Sequence, token_id: int, now: float) -> NewToken:
        first = None
        if not sequence.output_token_ids and sequence.started_at is not None:
            first = FirstToken(now - sequence.started_at, sequence.cached_tokens)
        sequence.pending_row = None
        sequence.output_token_ids.append(token_id)
        self.decode_tokens += 1
        if sequence.grammar is not None:
            sequence.grammar.advance(token_id)
        reason = self._finish_reason(sequence, token_id)
        if reason is not None:
            (self._running if sequence in self._running else self._waiting).remove(sequence)
            self._end(sequence)
        return NewToken(sequence.request_id, token_id, reason, first=first)

    def _end(self, sequence: Sequence) -> None:
        sequence.ended = True
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._pool.give_back(sequence.blocks)
        sequence.blocks = array("i")
        for context in sequence.contexts:
            self._pool.give_back(context.blocks)
            context.blocks, context.is_computed = array("i"), False
        sequence.computed_tokens = 0

    def _keys(self, sequence: Sequence, start: int, stop: int) -> list[bytes]:
        """Keys of the blocks that tokens ``start`` to ``stop`` fill; none when nothing is to be shared."""
        return sequence.block_keys(start, stop) if self._prefix_cache else []

    def _context_keys(self, sequence: Sequence, context: PictureContext) -> list[bytes]:
        """The same of pictures beside the sequence."""
        return context.keys(sequence.request.cache_salt) if self._prefix_cache else []

    def _keys_to_come(self, sequence: Sequence) -> list[bytes]:
        """Keys of the blocks that a running sequence is about to fill; of pictures, the first one."""
        keys = self._keys(sequence, sequence.computed_tokens, sequence.token_count)
        waited = (context for context in sequence.contexts if context.blocks and not context.is_computed)
        return keys + [key for context in waited for key in self._context_keys(sequence, context)[:1]]

    @staticmethod
    def _finish_reason(sequence: Sequence, token_id: int) -> FinishReason | None:
        complete = sequence.grammar is not None and sequence.grammar.finished
        if complete or token_id in sequence.request.stop_token_ids:
            return FinishReason.STOP
        if len(sequence.output_token_ids) >= sequence.request.max_tokens:
            return FinishReason.LENGTH
        return None


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival


def _decode(sequence: Sequence) -> Chunk:
    return Chunk(sequence, sequence.computed_tokens, sequence.token_count, reaches_end=True)


def _prefill(sequence: Sequence, budget: int) -> Chunk:
    start = sequence.computed_tokens
    stop = min(sequence.token_count, start + budget)
    return Chunk(sequence, start, stop, reaches_end=stop == sequence.token_count)
