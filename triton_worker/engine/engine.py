"""The engine of one process: requests in, tokens out, one step at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from protocol.messages import EngineCounters, SamplingParameters
from triton_worker.engine.block_pool import BlockPool
from triton_worker.engine.grammar import GrammarCompiler
from triton_worker.engine.kv_cache import BLOCK_TOKENS, KVCache, blocks_for
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.memory import kv_cache_bytes, picture_cache_bytes, records_graphs
from triton_worker.engine.messages import EngineStatus, Generate, NewToken, Picture, StepOutput
from triton_worker.engine.picture_encoder import PictureEncoder
from triton_worker.engine.runner import ModelRunner
from triton_worker.engine.sampler import NO_TOKEN, SampledFetch, SampledToken
from triton_worker.engine.scheduler import Chunk, Scheduler
from triton_worker.models.interface import MultimodalModel

logger = logging.getLogger(__name__)


class EngineError(Exception):
    """The engine cannot be built as asked; the message says what would be right."""


@dataclass(frozen=True)
class _Step:
    """Launched, and not completed yet."""

    chunks: list[Chunk]
    sampled: SampledFetch | None


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
        self._warm_up_tokens = 1 if model.cross_span else model.picture_tokens(height, width)
        if self._warm_up_tokens + 2 > self.context_length:
            raise EngineError(
                f"A context of {self.context_length} tokens has no room for a picture, which takes "
                f"{self._warm_up_tokens}: give a larger --max_model_len."
            )
        total_blocks = _count_blocks(model, image_token_id, self.context_length, limits)
        self._pool = BlockPool(total_blocks)
        self._spare_blocks = total_blocks - blocks_for(self.context_length)
        self.picture_room = self._spare_blocks * model.cross_span * BLOCK_TOKENS if model.cross_span else None
        """Embeddings that pictures beside a prompt may have together; ``None``: theirs are tokens of the prompt."""
        self._scheduler = Scheduler(self._pool, limits.max_sequences, limits.max_prefill_tokens, limits.prefix_cache)
        cache_bytes = picture_cache_bytes(model.device, limits)
        self._pictures = PictureEncoder(model, cache_bytes, limits.max_prefill_tokens)
        vocabulary_size = None if grammars is None else grammars.vocabulary_size
        self._runner = ModelRunner(
            model, image_token_id, total_blocks, self._pictures, limits.max_sequences, vocabulary_size
        )
        self._grammars = grammars
        self._ranks = model.ranks
        self._image_token_id = image_token_id
        self._records_graphs = records_graphs(model, limits)
        self._max_prefill_tokens = limits.max_prefill_tokens
        on_gpu = model.device.type == "cuda"
        # On a GPU long contexts are attended to by other kernels than short ones.
        self._warm_up_text = 512 if on_gpu else 1
        # The first of several stages is told the tokens that the last one drew, and until then has nothing to compute.
        wanted = on_gpu if limits.overlap_steps is None else limits.overlap_steps
        self._overlaps = wanted and model.ranks.is_one_stage
        self._under_way: _Step | None = None
        self._steps = 0
        self._step_seconds = 0.0
        self._leak: str | None = None

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self._under_way is not None or self._scheduler.running_count + self._scheduler.waiting_count > 0

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
                picture_queries=self._pictures.queries + self._scheduler.picture_queries,
                picture_hits=self._pictures.hits + self._scheduler.picture_hits,
            ),
        )

    def add(self, request: Generate) -> None:
        """Queue a request that fits the context.

        Raises:
            GrammarError: its grammar does not compile.
            EngineError: the KV cache has no room for its pictures.
        """
        sequence = self._runner.new_sequence(request)
        if sum(context.block_count for context in sequence.contexts) > self._spare_blocks:
            raise EngineError(f"The KV cache has no room for the {len(request.pictures)} pictures of one request.")
        if request.sampling.grammar is not None:
            if self._grammars is None:
                raise EngineError("This engine was built without a tokenizer, and so without grammars.")
            sequence.grammar = self._grammars.matcher(request.sampling.grammar)
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> bool:
        """Drop a request; whether it was there."""
        return self._scheduler.abort(request_id)

    def step(self) -> StepOutput:
        """Advance every running request by one token, and prompts by as many as one step may compute.

        Where steps overlap, this one is launched while the one before is computed, and what that one made is returned.
        """
        began = time.monotonic()
        chunks = self._scheduler.schedule()
        if not chunks and self._under_way is None:
            self._check_for_leak()
            return StepOutput(status=self.status)
        tokens: list[NewToken] = []
        failed: list[str] = []
        try:
            logits = self._runner.forward(chunks) if chunks else None
            self._collect(tokens, failed)
            if logits is not None:
                self._under_way = _Step(chunks, self._runner.sample(chunks, logits))
                self._scheduler.launch(chunks)
        except torch.OutOfMemoryError as error:
            logger.warning("Memory ran out in a step of %d sequences: %s", len(chunks), error)
            dropped = [] if self._ranks.count > 1 else self._drop_prompts(chunks)
            if not dropped:  # other ranks may have had the room: to go on without them would be to part from them
                raise
            failed += dropped
        if not self._overlaps:
            self._collect(tokens, failed)
        self._steps += 1
        self._step_seconds += time.monotonic() - began
        return StepOutput(tuple(tokens), tuple(failed), self.status)

    def _collect(self, tokens: list[NewToken], failed: list[str]) -> None:
        """Take what the step under way makes; a sequence whose grammar lets none through is dropped."""
        if self._under_way is None:
            return
        step, self._under_way = self._under_way, None
        drawn: list[SampledToken] = []
        if step.sampled is not None:
            fetch = step.sampled
            self._ranks.wait_for(lambda: fetch.has_arrived)
            drawn = fetch.wait()
        sampled = self._ranks.from_last_stage(drawn)
        ends = [chunk.sequence for chunk in step.chunks if chunk.reaches_end]
        stuck = [s for s, token in zip(ends, sampled, strict=True) if token.token_id == NO_TOKEN and not s.ended]
        for sequence in stuck:
            self._scheduler.abort(sequence.request_id)
            failed.append(sequence.request_id)
        logprobs = {s.request_id: token.logprobs for s, token in zip(ends, sampled, strict=True)}
        for new in self._scheduler.complete(step.chunks, [token.token_id for token in sampled]):
            tokens.append(replace(new, logprobs=logprobs[new.request_id]))

    def _check_for_leak(self) -> None:
        """While there is nothing to do, no request holds a block; said once when it is not so."""
        leak = None if self.has_work else self._pool.leak
        if leak is not None and leak != self._leak:
            logger.error("%s", leak)
        self._leak = leak

    def _drop_prompts(self, chunks: list[Chunk]) -> list[str]:
        """Drop the step's prompts, whose size is what memory ran out of; the other requests go on."""
        prompts = [chunk.sequence.request_id for chunk in chunks if chunk.stop - chunk.start > 1]
        return [request_id for request_id in prompts if self._scheduler.abort(request_id)]

    def warm_up(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Be sure that the whole way works and that every kernel is there.

        Where CUDA graphs are recorded, ``progress`` is told how many of how many are done.
        """
        self._answer_two("launched")
        if self._records_graphs:
            self._runner.capture_graphs(self.context_length, self._max_prefill_tokens, progress)
            self._answer_two("replayed")

    def _answer_two(self, name: str) -> None:
        """Two prompts with a picture, the second while the first runs."""
        self.add(self._warm_up_request(f"{name} first", tokens=4))
        self.step()
        self.step()
        self.add(self._warm_up_request(f"{name} second", tokens=2))
        while self.has_work:
            self.step()

    def _warm_up_request(self, name: str, tokens: int) -> Generate:
        picture = np.zeros((*self._warm_up_size, 3), dtype=np.uint8)
        room = self.context_length - self._warm_up_tokens
        text = max(1, min(self._warm_up_text, room - tokens))
        return Generate(
            request_id=f"warm-up {name}",
            prompt_token_ids=(self._image_token_id,) * self._warm_up_tokens + (0,) * text,
            pictures=(Picture.of(picture),),
            sampling=SamplingParameters(temperature=1.0),
            max_tokens=min(tokens, room - text),
            seed=0,
            stop_token_ids=frozenset(),
            cache_salt=name,  # or all but the first would have nothing to compute
        )


def _count_blocks(model: MultimodalModel, image_token_id: int, context_length: int, limits: EngineLimits) -> int:
    """KV blocks that memory has room for, and at most as many as the limits can use."""
    block_bytes = KVCache.block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
    # Each rank may have other room; all must schedule alike.
    room = model.ranks.smallest(kv_cache_bytes(model, image_token_id, context_length, limits) // block_bytes)
    beside = _blocks_beside(model)
    total = min(max(0, room), limits.max_sequences * (blocks_for(context_length) + beside))
    if total < blocks_for(context_length) + beside:
        left = max(0, total - beside) * BLOCK_TOKENS
        pictures = " beside a picture" if beside else ""
        raise EngineError(
            f"The KV cache has room for {left} tokens{pictures}, but one request may have {context_length}: "
            f"give --max_model_len {left} or less, or more memory."
        )
    return total


def _blocks_beside(model: MultimodalModel) -> int:
    """Blocks that the largest picture takes where its embeddings stand beside the prompt."""
    if not model.cross_span:
        return 0
    assert model.picture_size is not None, "a model with cross-attention bounds its pictures"
    return -(-model.picture_tokens(*model.picture_size) // (model.cross_span * BLOCK_TOKENS))
