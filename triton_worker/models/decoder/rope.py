"""Rotary position embeddings (arXiv:2104.09864)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Rotary(NamedTuple):
    """What to turn each token's heads by. Both are [tokens, 1, head_dim].

    A vector's halves (a, b) become (a cos - b sin, b cos + a sin); the minus sign is kept in `signed_sin`.
    """

    cos: Tensor
    signed_sin: Tensor


def rotary_from_angles(angles: Tensor, dtype: torch.dtype) -> Rotary:
    """[tokens, head_dim / 2] float32 -> tables of `dtype`."""
    cos, sin = angles.cos(), angles.sin()
    return Rotary(
        torch.cat((cos, cos), dim=-1).unsqueeze(1).to(dtype),
        torch.cat((-sin, sin), dim=-1).unsqueeze(1).to(dtype),
    )


def apply_rotary(heads: Tensor, rotary: Rotary) -> Tensor:
    """[tokens, heads, head_dim], any float dtype -> the same, turned in the tables' precision if that is higher."""
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    return (heads * rotary.cos + swapped * rotary.signed_sin).to(heads.dtype)


def inverse_frequencies(size: int, theta: float, device: torch.device) -> Tensor:
    """For pair i of the size / 2 that turn together: theta ** (-2i / size), float32."""
    # Computed on the CPU, so that every device turns by the same angles.
    return (1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)).to(device)


@dataclass(frozen=True)
class Llama3Scaling:
    """How Llama 3.1 (arXiv:2407.21783, section 3.4.2) reads longer texts than it was first trained on.

    Pairs that turn slowly turn `factor` times more slowly; those that turn `high_freq_factor` times or more within
    `original_length` tokens stay as they are, and in between the change is gradual.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def apply(self, frequencies: Tensor) -> Tensor:
        turns = self.original_length * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(frequencies / self.factor, frequencies, kept.clamp(0, 1))


class DecoderRotary:
    """mRoPE (arXiv:2409.12191): of the head's frequencies, the first turn with time, the next with row, then column.

    With all of them in the first section it is the rotary embedding of positions in one dimension.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        sections: Sequence[int],
        device: torch.device,
        scaling: Llama3Scaling | None = None,
    ) -> None:
        frequencies = inverse_frequencies(head_dim, theta, device)
        self._frequencies = frequencies if scaling is None else scaling.apply(frequencies)
        axes = [axis for axis, count in enumerate(sections) for _ in range(count)]
        self._axis_of_frequency = torch.tensor(axes, device=device)

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> Rotary:
        """[3, tokens] int64 -> tables, made once per forward and shared by its layers."""
        angles = positions.to(torch.float32).t()[:, self._axis_of_frequency] * self._frequencies
        return rotary_from_angles(angles, dtype)
