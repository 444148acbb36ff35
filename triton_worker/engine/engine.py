"""The engine of one process: requests in, tokens out, one step at a time."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
import torch

from protocol.messages import EngineCounters, SamplingParameters
from triton_worker.engine.block_pool import BlockPool
from triton_worker.engine.grammar import GrammarCompiler
from triton_worker.engine.kv_cache import BLOCK_TOKENS, KVCache, blocks_for
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.memory import kv_cache_bytes, picture_cache_bytes
from triton_worker.engine.messages import EngineStatus, Generate, Picture, StepOutput
from triton_worker.engine.picture_encoder import PictureEncoder
from triton_worker.engine.runner import ModelRunner
from triton_worker.engine.sampler import NO_TOKEN, SampledToken
from triton_worker.engine.scheduler import Chunk, Scheduler
from triton_worker.models.interface import MultimodalModel

logger = logging.getLogger(__name__)


class EngineError(Exception):
    """The engine cannot be built as asked; the message says what would be right."""


class Engine:
    """All requests in flight of one model."""

    def __init__(
        self,
        model: MultimodalModel,
        image_token_id: int,
        trained_length: int,
        limits: EngineLimits,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        """``trained_length`` is the context length of the checkpoint, ``grammars`` compiles for its tokenizer.

        Raises:
            EngineError: the KV cache does not fit a single full context, or that does not fit a picture.
        """
        self.context_length = limits.context_length or trained_length
        height, width = self._warm_up_size = model.picture_size or (2 * model.picture_unit, 2 * model.picture_unit)
        self._warm_up_tokens = height * width // model.picture_unit**2
        if self._warm_up_tokens + 2 > self.context_length:
            raise EngineError(
                f"A context of {self.context_length} tokens has no room for a picture, which takes "
                f"{self._warm_up_tokens}: give a larger --max_model_len."
            )
        total_blocks = _count_blocks(model, image_token_id, self.context_length, limits)
        self._pool = BlockPool(total_blocks)
        self._scheduler = Scheduler(self._pool, limits.max_sequences, limits.max_prefill_tokens, limits.prefix_cache)
        cache_bytes = picture_cache_bytes(model.device, limits)
        self._pictures = PictureEncoder(model, cache_bytes, limits.max_prefill_tokens)
        vocabulary_size = None if grammars is None else grammars.vocabulary_size
        self._runner = ModelRunner(model, image_token_id, total_blocks, self._pictures, vocabulary_size)
        self._grammars = grammars
        self._ranks = model.ranks
        self._image_token_id = image_token_id
        self._steps = 0
        self._step_seconds = 0.0
        self._leak: str | None = None

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self._scheduler.running_count + self._scheduler.waiting_count > 0

    @property
    def status(self) -> EngineStatus:
        """How much is going on."""
        return EngineStatus(
            running=self._scheduler.running_count,
            waiting=self._scheduler.waiting_count,
            free_blocks=self._pool.free_count,
            total_blocks=self._pool.total,
            counters=EngineCounters(
                preemptions=self._scheduler.preemptions,
                steps=self._steps,
                step_seconds=self._step_seconds,
                prefill_tokens=self._scheduler.prefill_tokens,
                decode_tokens=self._scheduler.decode_tokens,
                prefix_queries=self._scheduler.prefix_queries,
                prefix_hits=self._scheduler.prefix_hits,
                picture_queries=self._pictures.queries,
                picture_hits=self._pictures.hits,
            ),
        )

    def add(self, request: Generate) -> None:
        """Queue a request that fits the context.

        Raises:
            GrammarError: its grammar does not compile.
        """
        sequence = self._runner.new_sequence(request)
        if request.sampling.grammar is not None:
            if self._grammars is None:
                raise EngineError("This engine was built without a tokenizer, and so without grammars.")
            sequence.grammar = self._grammars.matcher(request.sampling.grammar)
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> bool:
        """Drop a request; whether it was there."""
        return self._scheduler.abort(request_id)

    def step(self) -> StepOutput:
        """Advance every running request by one token, and prompts by as many as one step may compute."""
        began = time.monotonic()
        chunks = self._scheduler.schedule()
        if not chunks:
            self._check_for_leak()
            return StepOutput(status=self.status)
        try:
            sampled = self._runner.run(chunks)
        except torch.OutOfMemoryError:
            failed = () if self._ranks.count > 1 else self._drop_prompts(chunks)
            if not failed:  # other ranks may have had the room: to go on without them would be to part from them
                raise
            return StepOutput(failed=failed, status=self.status)
        self._steps += 1
        self._step_seconds += time.monotonic() - began
        return self._complete(chunks, sampled)

    def _complete(self, chunks: list[Chunk], sampled: list[SampledToken]) -> StepOutput:
        """Take a step's tokens; a sequence whose grammar lets none through is dropped."""
        ending = [chunk.sequence.request_id for chunk in chunks if chunk.reaches_end]
        stuck = [name for name, token in zip(ending, sampled, strict=True) if token.token_id == NO_TOKEN]
        for request_id in stuck:
            self._scheduler.abort(request_id)
        kept = [chunk for chunk in chunks if chunk.sequence.request_id not in stuck]
        drawn = [token for token in sampled if token.token_id != NO_TOKEN]
        tokens = self._scheduler.complete(kept, [token.token_id for token in drawn])
        told = (replace(new, logprobs=token.logprobs) for new, token in zip(tokens, drawn, strict=True))
        return StepOutput(tuple(told), failed=tuple(stuck), status=self.status)

    def _check_for_leak(self) -> None:
        """While there is nothing to do, no request holds a block; said once when it is not so."""
        leak = None if self.has_work else self._pool.leak
        if leak is not None and leak != self._leak:
            logger.error("%s", leak)
        self._leak = leak

    def _drop_prompts(self, chunks: list[Chunk]) -> tuple[str, ...]:
        """Drop the step's prompts, whose size is what memory ran out of; the other requests go on."""
        prompts = [chunk.sequence.request_id for chunk in chunks if chunk.stop - chunk.start > 1]
        for request_id in prompts:
            self._scheduler.abort(request_id)
        return tuple(prompts)

    def warm_up(self) -> None:
        """Generate two tokens from a picture, so that being ready means that the whole way works."""
        picture = np.zeros((*self._warm_up_size, 3), dtype=np.uint8)
        self.add(
            Generate(
                request_id="warm-up",
                prompt_token_ids=(self._image_token_id,) * self._warm_up_tokens + (0,),
                pictures=(Picture.of(picture),),
                sampling=SamplingParameters(temperature=1.0),
                max_tokens=2,
                seed=0,
                stop_token_ids=frozenset(),
            )
        )
        while self.has_work:
            self.step()


def _count_blocks(model: MultimodalModel, image_token_id: int, context_length: int, limits: EngineLimits) -> int:
    """KV blocks that memory has room for, and at most as many as the limits can use."""
    block_bytes = KVCache.block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
    # Each rank may have other room; all must schedule alike.
    room = model.ranks.smallest(kv_cache_bytes(model, image_token_id, context_length, limits) // block_bytes)
    total = min(max(0, room), limits.max_sequences * blocks_for(context_length))
    if total < blocks_for(context_length):
        raise EngineError(
            f"The KV cache has room for {total * BLOCK_TOKENS} tokens, but one request may have {context_length}: "
            f"give --max_model_len {total * BLOCK_TOKENS} or less, or more memory."
        )
    return total
