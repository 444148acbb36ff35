"""From logits to tokens, all sequences of a step at once."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from triton_worker.engine.sequence import Sequence

_GOLDEN_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer

_LOWEST_TEMPERATURE = 1e-5
"""What is lower draws the likeliest token all the same."""


@dataclass(frozen=True)
class SamplingBatch:
    """Sampling parameters as tensors, one entry a sequence, on the device of the logits."""

    temperature: Tensor
    """float32; 0 is greedy"""
    top_k: Tensor
    """int64; 0 is all"""
    top_p: Tensor
    """float32"""
    seed: Tensor
    """int64"""
    position: Tensor
    """int64: how many tokens the sequence has generated before this one"""
    all_greedy: bool

    @classmethod
    def of(cls, sequences: SequenceOf[Sequence], device: torch.device) -> SamplingBatch:
        """The parameters of ``sequences``, in order."""
        sampling = [sequence.request.sampling for sequence in sequences]
        return cls(
            temperature=torch.tensor([s.temperature for s in sampling], dtype=torch.float32, device=device),
            top_k=torch.tensor([s.top_k for s in sampling], dtype=torch.int64, device=device),
            top_p=torch.tensor([s.top_p for s in sampling], dtype=torch.float32, device=device),
            seed=torch.tensor([s.request.seed for s in sequences], dtype=torch.int64, device=device),
            position=torch.tensor([len(s.output_token_ids) for s in sequences], dtype=torch.int64, device=device),
            all_greedy=all(s.temperature == 0 for s in sampling),
        )


def sample(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """One token id for each row of ``logits`` (``[sequences, vocabulary]``): int64 ``[sequences]``.

    The draw depends on the row's seed and position alone, so a request is answered the same alone and in a crowd.
    """
    greedy = logits.argmax(dim=-1)
    if batch.all_greedy:
        return greedy
    # A model may overflow and a temperature be next to nothing: no row may end the step for the others.
    finite = logits.float().nan_to_num()
    scaled = (finite - finite.amax(dim=-1, keepdim=True)) / batch.temperature.clamp_min(_LOWEST_TEMPERATURE)[:, None]
    probabilities, token_ids = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    kept = _keep_likeliest(probabilities.double(), batch.top_k, batch.top_p)
    cumulative = kept.cumsum(dim=-1)
    threshold = uniform(batch.seed, batch.position) * cumulative[:, -1]
    rank = torch.searchsorted(cumulative, threshold[:, None], right=True).squeeze(1)
    last_kept = (kept > 0).sum(dim=-1) - 1
    drawn = token_ids.gather(1, rank.minimum(last_kept)[:, None]).squeeze(1)
    return torch.where(batch.temperature > 0, drawn, greedy)


def _keep_likeliest(probabilities: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Zero all but the likeliest (``probabilities`` falls along the last dim); the very likeliest is always kept."""
    rank = torch.arange(probabilities.shape[-1], device=probabilities.device)
    before = probabilities.cumsum(dim=-1) - probabilities
    within_p = (before < top_p[:, None]) | (top_p[:, None] >= 1)
    kept = within_p & ((rank < top_k[:, None]) | (top_k[:, None] == 0))
    return torch.where(kept | (rank == 0), probabilities, 0.0)


def uniform(seed: Tensor, position: Tensor) -> Tensor:
    """A number in [0, 1) for each pair of int64 ``seed`` and ``position``: float64, same shape.

    SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), with the seed mixed first
    so that neighbouring seeds share nothing. Wrapping int64 products stand in for unsigned ones.
    """
    mixed = _mix(_mix(seed) + (position + 1) * _GOLDEN_GAMMA)
    return _shift_right(mixed, 11).double() * 2.0**-53


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    bits = (bits ^ _shift_right(bits, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift: zeros come in from the left."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
