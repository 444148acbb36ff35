"""How much memory there is for the KV cache."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable

import numpy as np
import torch

from protocol.messages import SamplingParameters
from triton_worker.engine.kv_cache import BLOCK_TOKENS, KVCache, blocks_for
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.messages import Generate, Picture
from triton_worker.engine.picture_context import PictureContext
from triton_worker.engine.picture_encoder import PictureEncoder
from triton_worker.engine.runner import ModelRunner
from triton_worker.engine.scheduler import Chunk
from triton_worker.engine.sequence import PictureSpan, Sequence
from triton_worker.models.interface import MultimodalModel


def picture_cache_bytes(device: torch.device, limits: EngineLimits) -> int:
    """Bytes of picture embeddings to keep."""
    if limits.picture_cache_bytes is not None:
        return limits.picture_cache_bytes
    return 2**30 if device.type == "cuda" else 2**28


def kv_cache_bytes(model: MultimodalModel, image_token_id: int, context_length: int, limits: EngineLimits) -> int:
    """Bytes that the KV cache may take; may be negative where nothing is left."""
    if limits.kv_cache_bytes is not None:
        return limits.kv_cache_bytes
    if model.device.type != "cuda":
        return 2**30
    step_bytes = _measure_largest_step(model, image_token_id, context_length, limits)
    free_bytes, _ = torch.cuda.mem_get_info(model.device)
    # Pictures beside a prompt are kept in the KV cache itself.
    embeddings_bytes = 0 if model.cross_span else picture_cache_bytes(model.device, limits)
    return left_for_kv_cache(free_bytes, limits.gpu_memory_fraction, step_bytes, embeddings_bytes)


def left_for_kv_cache(free_bytes: int, fraction: float, step_bytes: int, picture_cache_bytes: int) -> int:
    """What a step computes with and the picture cache come first, out of the part of the memory that is ours."""
    return int(free_bytes * fraction) - step_bytes - picture_cache_bytes


def records_graphs(model: MultimodalModel, limits: EngineLimits) -> bool:
    """Whether steps are recorded in CUDA graphs."""
    return limits.cuda_graphs and model.device.type == "cuda" and model.ranks.is_one_stage


def _measure_largest_step(
    model: MultimodalModel, image_token_id: int, context_length: int, limits: EngineLimits
) -> int:
    """Bytes that the largest step and the CUDA graphs take beside weights and caches; they are free again."""
    step_bytes = _taken_by(model.device, lambda: run_largest_step(model, image_token_id, context_length, limits))
    if not records_graphs(model, limits):
        return step_bytes
    return step_bytes + _taken_by(model.device, lambda: _record_largest_graphs(model, context_length, limits))


def _taken_by(device: torch.device, action: Callable[[], None]) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    action()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_reserved(device) - before  # what the allocator cannot use again included
    torch.cuda.empty_cache()
    return peak


def _record_largest_graphs(model: MultimodalModel, context_length: int, limits: EngineLimits) -> None:
    """The smaller ones use their memory."""
    from triton_worker.engine.cuda_graphs import capture
    from triton_worker.engine.decode_graphs import DecodeGraphs
    from triton_worker.engine.prefill_graphs import PrefillGraphs, token_ladder

    most = limits.max_sequences
    cache = KVCache(
        1, model.num_layers, model.num_kv_heads, model.head_dim, model.dtype, model.device, model.cross_span
    )
    drawn = torch.zeros(most, dtype=torch.int64, device=model.device)
    sizes = token_ladder(limits.max_prefill_tokens, most)[-1:]
    prefill = PrefillGraphs(model, cache, most, sizes, context_length)
    decode = DecodeGraphs(model, cache, drawn, [most], context_length)
    capture([prefill.ladder, decode.ladder])


def run_largest_step(model: MultimodalModel, image_token_id: int, context_length: int, limits: EngineLimits) -> None:
    """Compute what needs most memory in a step: pictures, prefill and logits of as many tokens as may come together.

    All sequences write into the same KV block, so that no cache is needed; the numbers mean nothing.
    """
    encoder = PictureEncoder(model, 0, limits.max_prefill_tokens + limits.max_picture_tokens)
    runner = ModelRunner(model, image_token_id, 1, encoder, limits.max_sequences)
    prompt_tokens = min(limits.max_prefill_tokens, context_length)
    prefill = _sequence(context_length, _largest_pictures(model, limits)[:prompt_tokens])
    if model.cross_span:
        prefill.contexts = (_largest_context(model, prefill),)
    chunks = [Chunk(_sequence(1, []), 0, 1, reaches_end=True) for _ in range(limits.max_sequences - 1)]
    chunks.append(Chunk(prefill, context_length - prompt_tokens, context_length, reaches_end=True))
    runner.sample(chunks, runner.forward(chunks))


def _largest_pictures(model: MultimodalModel, limits: EngineLimits) -> list[Picture]:
    """As many of the largest pictures as have all the tokens that the tower may be given at once.

    Where they stand beside the prompt it is given one at a time.
    """
    unit = model.picture_unit
    rows = max(1, math.isqrt(limits.max_picture_tokens))
    columns = max(1, limits.max_picture_tokens // rows)
    height, width = model.picture_size or (rows * unit, columns * unit)
    count = 1 if model.cross_span else -(-limits.max_prefill_tokens // model.picture_tokens(height, width))
    pixels = np.zeros((height, width, 3), np.uint8)
    return [Picture(pixels, digest=place.to_bytes(8, "big")) for place in range(count)]


def _largest_context(model: MultimodalModel, sequence: Sequence) -> PictureContext:
    """The sequence's picture, to be stored in the first block over and over, and seen by the last token."""
    [span] = sequence.pictures
    length = model.picture_tokens(*span.picture.pixels.shape[:2])
    context = PictureContext(span.start, (span.picture,), (length,), model.cross_span * BLOCK_TOKENS)
    context.blocks = array("i", [0]) * context.block_count
    return context


def _sequence(tokens: int, pictures: list[Picture]) -> Sequence:
    """Tokens of the first block, read and written over and over; one of them stands for each picture."""
    request = Generate(
        request_id="largest",
        prompt_token_ids=(0,) * tokens,
        pictures=tuple(pictures),
        sampling=SamplingParameters(temperature=1.0, top_p=0.9),
        max_tokens=1,
        seed=0,
        stop_token_ids=frozenset(),
    )
    spans = tuple(
        PictureSpan(tokens - place - 1, tokens - place, picture) for place, picture in enumerate(request.pictures)
    )
    positions = torch.arange(tokens).expand(3, -1)
    return Sequence(request, positions, tokens, spans, blocks=array("i", [0]) * blocks_for(tokens))
