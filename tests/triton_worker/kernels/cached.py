"""Sequences in a shuffled KV cache, and attention over them in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triton_worker.engine.kv_cache import BLOCK_TOKENS, blocks_for

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

HALF = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
"""Triton's interpreter knows bfloat16 in part only."""
CASES = [((2, 2, 80), HALF), ((7, 1, 32), torch.float32)]
"""((query heads, KV heads, head_dim), dtype). The interpreter takes its time, so it is given little."""
if DEVICE.type == "cuda":
    CASES = [
        ((16, 2, 128), HALF),  # Qwen2.5-VL-3B
        ((28, 4, 128), HALF),  # and -7B
        ((3, 3, 80), HALF),
        ((16, 1, 64), torch.float16),
        ((4, 2, 256), HALF),
        ((6, 2, 96), HALF),
        ((2, 2, 16), HALF),
        ((28, 4, 128), torch.float32),
        ((3, 1, 80), torch.float32),
    ]

_TOLERANCES = {torch.bfloat16: 8e-3, torch.float16: 2e-3, torch.float32: 2e-5}


def randn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=torch.float32).to(DEVICE, dtype)


def assert_near(actual: Tensor, expected: Tensor, what: str) -> None:
    """Token by token, so that one wrong token among many does not get lost in the norm."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual64, expected64 = (x.to(torch.float64).flatten(1) for x in (actual, expected))
    errors = (actual64 - expected64).norm(dim=1) / expected64.norm(dim=1).clamp_min(1e-3)
    worst = int(torch.where(errors.isnan(), torch.inf, errors).argmax())
    tolerance = _TOLERANCES[actual.dtype]
    assert errors[worst] <= tolerance, f"{what}: token {worst} is off by {errors[worst]:.2g}, more than {tolerance}"


def plain_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """[tokens, heads, head_dim] against [keys, kv_heads, head_dim] of one sequence; the last token sees all."""
    group = query.shape[1] // key.shape[1]
    q, k, v = (x.to(torch.float64) for x in (query, key, value))
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) * query.shape[-1] ** -0.5
    if causal:
        visible = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
        scores = scores.masked_fill(~visible, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.repeat_interleave(group, 1))


@dataclass(frozen=True)
class CachedSequences:
    """Sequences of the given lengths. All cache rows that are none of theirs are NaN."""

    keys: Tensor
    values: Tensor
    block_tables: Tensor
    lengths: Sequence[int]

    @property
    def context_lengths(self) -> Tensor:
        return torch.tensor(self.lengths, dtype=torch.int32, device=DEVICE)

    def of(self, sequence: int) -> tuple[Tensor, Tensor]:
        """Keys and values, [length, kv_heads, head_dim]."""
        rows = self._rows(sequence)
        return self.keys[rows], self.values[rows]

    def last_rows(self) -> Tensor:
        """int64 [sequences], where the last token of each is; -1 for those without one."""
        empty = torch.tensor([-1], device=DEVICE)
        return torch.cat([self._rows(i)[-1:] if length else empty for i, length in enumerate(self.lengths)])

    def _rows(self, sequence: int) -> Tensor:
        position = torch.arange(self.lengths[sequence], device=DEVICE)
        return self.block_tables[sequence].long()[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS


def cached_sequences(lengths: Sequence[int], kv_heads: int, head_dim: int, dtype: torch.dtype) -> CachedSequences:
    blocks = [blocks_for(length) for length in lengths]
    total = sum(blocks) + 3
    numbers = torch.randperm(total)
    tables = torch.full((len(lengths), max(blocks) + 2), 2**30, dtype=torch.int32)  # far outside: not to be followed
    keys = torch.full((total * BLOCK_TOKENS, kv_heads, head_dim), torch.nan)
    values = keys.clone()
    at = 0
    for sequence, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
        table = numbers[at : at + count]
        at += count
        tables[sequence, :count] = table
        rows = (table[:, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).flatten()[:length]
        keys[rows] = torch.randn(length, kv_heads, head_dim)
        values[rows] = torch.randn(length, kv_heads, head_dim)
    return CachedSequences(keys.to(DEVICE, dtype), values.to(DEVICE, dtype), tables.to(DEVICE), lengths)
