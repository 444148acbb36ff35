"""What bandwidth and arithmetic of the machine allow at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from triton_worker.engine.kv_cache import BLOCK_TOKENS, KVCache
from triton_worker.models.qwen_vl.model import QwenVL


def timed(action: Callable[[], object]) -> float:
    """Seconds one call takes, with what it left running on the device."""
    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _seconds(action: Callable[[], object]) -> float:
    """Of one of several in a row, so that what starting and waiting costs is spread over them."""
    return statistics.median(timed(lambda: [action() for _ in range(5)]) for _ in range(7)) / 5


class Limits:
    """Measured now, on the model's device and in its dtype."""

    def __init__(self, model: QwenVL) -> None:
        self._model = model
        large = model.device.type == "cuda"
        source = torch.empty(2**30 if large else 2**26, dtype=torch.uint8, device=model.device)
        target = torch.empty_like(source)
        self.bytes_per_second = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
        side = 8192 if large else 1024
        square = torch.randn(side, side, device=model.device, dtype=model.dtype)
        self.flop_per_second = 2 * side**3 / _seconds(lambda: square @ square)
        self._step_values = _values(model.decoder)
        if not model.config.text.tied_embeddings:
            self._step_values -= model.decoder.embed_tokens.weight.numel()  # of which a step reads a few rows
        self._layer_values = _values(model.decoder.layers)
        self._vision_values = _values(model.vision)

    def decode_step(self, batch: int, context: int) -> float:
        """Seconds in which the weights and the KV cache of ``batch`` sequences can be read once."""
        model = self._model
        block_bytes = KVCache.block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
        cache = batch * context * block_bytes / BLOCK_TOKENS
        return (self._step_values * model.dtype.itemsize + cache) / self.bytes_per_second

    def first_token(self, picture_tokens: int, prompt_tokens: int) -> float:
        """Seconds for the products of vision tower and prefill, attention left out."""
        patches = self._model.config.vision.merge_size**2 * picture_tokens
        values = self._vision_values * patches + self._layer_values * prompt_tokens
        return 2 * values / self.flop_per_second

    def tokens_per_second(self, in_flight: int, picture_tokens: int, prompt_tokens: int, output_tokens: int) -> float:
        """When prefills and decode steps take turns and nothing else costs time."""
        step = self.decode_step(in_flight, prompt_tokens + output_tokens // 2)
        prefill = self.first_token(picture_tokens, prompt_tokens)
        return output_tokens / (prefill + output_tokens * step / in_flight)


def _values(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
