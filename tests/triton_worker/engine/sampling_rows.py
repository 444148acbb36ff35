"""Sequences to sample for, and the sampler written once more, plainly, for one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from protocol.messages import SamplingParameters
from tests.triton_worker.device import DEVICE
from triton_worker.engine.messages import Generate
from triton_worker.engine.sampler import SampledToken, SamplingBatch, sample
from triton_worker.engine.sequence import Sequence

_MASK = 2**64 - 1


def row(
    sampling: SamplingParameters, seed: int = 0, prompt: SequenceOf[int] = (0,), output: SequenceOf[int] = ()
) -> Sequence:
    request = Generate("r", tuple(prompt), (), sampling, 100, seed, frozenset())
    positions = torch.arange(len(prompt)).expand(3, -1)
    return Sequence(request, positions, len(prompt), output_token_ids=list(output))


def sampled(logits: Tensor, rows: list[Sequence]) -> list[SampledToken]:
    batch = SamplingBatch.of(rows, logits.shape[-1], DEVICE)
    return sample(logits.to(DEVICE), batch).fetch().wait()


def tokens(logits: Tensor, rows: list[Sequence]) -> list[int]:
    return [token.token_id for token in sampled(logits, rows)]


def uniform(seed: int, position: int) -> float:
    """SplitMix64 in Python's integers."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    return (mix((mix(seed & _MASK) + (position + 1) * 0x9E3779B97F4A7C15) & _MASK) >> 11) * 2.0**-53


def plain_token(logits: list[float], sequence: Sequence) -> int:
    """What the sampler promises to choose, one number after the other."""
    s, output = sequence.request.sampling, sequence.output_token_ids
    adjusted = []
    for token_id, logit in enumerate(logits):
        value = logit + s.logit_bias.get(token_id, 0.0)
        if token_id in sequence.request.prompt_token_ids or token_id in output:
            value = value / s.repetition_penalty if value > 0 else value * s.repetition_penalty
        value -= s.presence_penalty * (token_id in output) + s.frequency_penalty * output.count(token_id)
        adjusted.append(value)
    if s.temperature == 0:
        return adjusted.index(max(adjusted))
    weights = [math.exp((value - max(adjusted)) / s.temperature) for value in adjusted]
    weights = [w if w >= s.min_p * max(weights) else 0.0 for w in weights]
    if s.top_k:
        weights = _at_least(weights, sorted(weights, reverse=True)[: s.top_k][-1])
    if s.top_p < 1:
        mass, bound = 0.0, max(weights)
        for weight in sorted(weights, reverse=True):
            if mass < s.top_p * sum(weights):
                bound = weight
            mass += weight
        weights = _at_least(weights, bound)
    threshold = uniform(sequence.request.seed, len(output)) * sum(weights)
    mass = 0.0
    for token_id, weight in enumerate(weights):
        mass += weight
        if mass > threshold:
            return token_id
    raise AssertionError("unreachable")


def _at_least(weights: list[float], bound: float) -> list[float]:
    return [weight if weight >= bound else 0.0 for weight in weights]
