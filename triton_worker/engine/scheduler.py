"""Which tokens of which requests the next step computes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from protocol.messages import FinishReason
from triton_worker.engine.kv_cache import BlockPool, blocks_for
from triton_worker.engine.messages import NewToken
from triton_worker.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens ``start`` to ``stop`` of one sequence. A decode chunk is one token long."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def reaches_end(self) -> bool:
        """Whether the next token can be sampled after this chunk."""
        return self.stop == self.sequence.token_count


class Scheduler:
    """First come, first served; the state of all sequences changes here and nowhere else.

    Every step decodes one token of each running sequence and prefills as many waiting ones as fit. When a running
    sequence needs a KV block and none is free, the youngest is preempted: it gives its blocks back, goes to the head
    of the queue and is computed again from its first token.
    """

    def __init__(self, pool: BlockPool, max_sequences: int, max_prefill_tokens: int) -> None:
        self._pool = pool
        self._max_sequences = max_sequences
        self._max_prefill_tokens = max_prefill_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self.preemptions = 0

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
        self._waiting.append(sequence)

    def abort(self, request_id: str) -> bool:
        """Drop a sequence and free its blocks; whether there was one."""
        for sequences in (self._running, self._waiting):
            for sequence in sequences:
                if sequence.request_id == request_id:
                    sequences.remove(sequence)
                    self._release(sequence)
                    return True
        return False

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step; empty when nothing waits or runs."""
        self._grow_running()
        chunks = [Chunk(s, s.cached_tokens, s.token_count) for s in self._running]
        return chunks + self._admit()

    def complete(self, chunks: list[Chunk], token_ids: list[int]) -> list[NewToken]:
        """Take the step's result: the token sampled after each chunk, in order."""
        tokens = []
        for chunk, token_id in zip(chunks, token_ids, strict=True):
            sequence = chunk.sequence
            sequence.cached_tokens = chunk.stop
            sequence.output_token_ids.append(token_id)
            if sequence.grammar is not None:
                sequence.grammar.advance(token_id)
            reason = self._finish_reason(sequence, token_id)
            if reason is not None:
                self._running.remove(sequence)
                self._release(sequence)
            tokens.append(NewToken(sequence.request_id, token_id, reason))
        return tokens

    def _grow_running(self) -> None:
        """Give each running sequence the block its next token needs, preempting from the young end."""
        for sequence in list(self._running):
            while sequence in self._running:
                missing = blocks_for(sequence.token_count) - len(sequence.blocks)
                if missing <= self._pool.free_count:
                    sequence.blocks += self._pool.take(missing)
                    break
                self._preempt(self._running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        self._waiting.appendleft(sequence)
        self.preemptions += 1

    def _admit(self) -> list[Chunk]:
        """Start waiting sequences, in order, while sequences, tokens and blocks allow."""
        chunks: list[Chunk] = []
        budget = self._max_prefill_tokens
        while self._waiting and len(self._running) < self._max_sequences:
            sequence = self._waiting[0]
            tokens = sequence.token_count
            if blocks_for(tokens) > self._pool.free_count or (chunks and tokens > budget):
                break
            self._waiting.popleft()
            sequence.blocks = self._pool.take(blocks_for(tokens))
            self._running.append(sequence)
            chunks.append(Chunk(sequence, 0, tokens))
            budget -= tokens
        return chunks

    def _release(self, sequence: Sequence) -> None:
        self._pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.cached_tokens = 0

    @staticmethod
    def _finish_reason(sequence: Sequence, token_id: int) -> FinishReason | None:
        complete = sequence.grammar is not None and sequence.grammar.finished
        if complete or token_id in sequence.request.stop_token_ids:
            return FinishReason.STOP
        if len(sequence.output_token_ids) >= sequence.request.max_tokens:
            return FinishReason.LENGTH
        return None
