"""From logits to tokens, all sequences of a step at once and without waiting for the device.

The order is that of vLLM and Hugging Face transformers: grammar, logit bias, penalties, temperature, then min_p, top_k
and top_p, each of what the one before left. What nobody in the batch asks for is not computed, and no row's token
depends on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from triton_worker.engine.adjustments import LogitBias, Penalties
from triton_worker.engine.grammar import GrammarMask
from triton_worker.engine.logprobs import Logprobs, LogprobsAsked
from triton_worker.engine.messages import TokenLogprobs
from triton_worker.engine.sequence import Sequence
from triton_worker.engine.truncation import Truncation
from triton_worker.transfer import Fetch, send

NO_TOKEN = -1
"""In place of a token, where a grammar lets none through."""

_GOLDEN_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer

_LOWEST_TEMPERATURE = 1e-5
"""What is lower draws the likeliest token all the same."""


@dataclass(frozen=True)
class SamplingBatch:
    """Sampling parameters as tensors, one entry a sequence, on the device of the logits."""

    temperature: Tensor
    """float32; 0 is greedy"""
    seed: Tensor
    """int64"""
    position: Tensor
    """int64: how many tokens the sequence has generated before this one"""
    all_greedy: bool
    truncation: Truncation | None = None
    bias: LogitBias | None = None
    penalties: Penalties | None = None
    grammar: GrammarMask | None = None
    logprobs: LogprobsAsked | None = None

    @classmethod
    def of(cls, sequences: SequenceOf[Sequence], vocabulary: int, device: torch.device) -> SamplingBatch:
        """The parameters of ``sequences``, in order. Computes grammars' masks, on the CPU."""
        sampling = [sequence.request.sampling for sequence in sequences]
        draws = [(sequence.request.seed, len(sequence.output_token_ids)) for sequence in sequences]
        seed, position = send(draws, device, torch.int64).unbind(dim=1)
        return cls(
            temperature=send([s.temperature for s in sampling], device, torch.float32),
            seed=seed,
            position=position,
            all_greedy=all(s.temperature == 0 for s in sampling),
            truncation=Truncation.of(sampling, device),
            bias=LogitBias.of(sequences, vocabulary, device),
            penalties=Penalties.of(sequences, vocabulary, device),
            grammar=GrammarMask.of(sequences, device),
            logprobs=LogprobsAsked.of(sequences, device),
        )

    @property
    def adjusts(self) -> bool:
        """Whether any row's logits are changed before they are drawn from."""
        return not (self.bias is None and self.penalties is None and self.grammar is None)


@dataclass(frozen=True)
class SampledToken:
    """One row's result, on the host."""

    token_id: int
    """:data:`NO_TOKEN` where none could be chosen."""
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Sampled:
    """A step's result, on the device."""

    token_ids: Tensor
    """int64 ``[batch]``"""
    logprobs: Logprobs | None = None

    def fetch(self) -> SampledFetch:
        """Begin to bring it to the host."""
        return SampledFetch(self)


class SampledFetch:
    """A step's result on its way to the host, in one transfer."""

    def __init__(self, sampled: Sampled) -> None:
        self._parts = [sampled.token_ids]
        self._asked = None
        if sampled.logprobs is not None:
            logprobs = sampled.logprobs
            self._asked = logprobs.asked
            self._parts += [logprobs.chosen, logprobs.likeliest_token_ids, logprobs.likeliest]
        # float64 holds token ids and float32 without loss.
        packed = torch.cat([part.double().flatten() for part in self._parts]) if self._asked else sampled.token_ids
        self._fetch = Fetch(packed)

    @property
    def has_arrived(self) -> bool:
        """Whether there is nothing to wait for."""
        return self._fetch.has_arrived

    def wait(self) -> list[SampledToken]:
        """The result of each row, when it is there."""
        packed = self._fetch.wait()
        if self._asked is None:
            return [SampledToken(token_id) for token_id in packed.tolist()]
        token_ids, chosen, likeliest_token_ids, likeliest = (
            values.view(part.shape).tolist()
            for values, part in zip(torch.split(packed, [p.numel() for p in self._parts]), self._parts, strict=True)
        )
        told = {
            row: TokenLogprobs(
                chosen[at],
                tuple((int(i), p) for i, p in zip(likeliest_token_ids[at], likeliest[at], strict=True))[:count],
            )
            for at, (row, count) in enumerate(self._asked.likeliest.items())
        }
        return [SampledToken(int(token_id), told.get(row)) for row, token_id in enumerate(token_ids)]


def sample(logits: Tensor, batch: SamplingBatch) -> Sampled:
    """One token for each row of ``logits`` (``[batch, vocabulary]``)."""
    if batch.all_greedy and not batch.adjusts and batch.logprobs is None:
        return Sampled(logits.argmax(dim=-1))
    # A model may overflow: no row may end the step for the others.
    raw = logits.float().nan_to_num()
    adjusted = _adjusted(raw, batch)
    token_ids = adjusted.argmax(dim=-1)
    if not batch.all_greedy:
        token_ids = torch.where(batch.temperature > 0, _draw(adjusted, batch), token_ids)
    if batch.grammar is not None:
        token_ids = token_ids.masked_fill(batch.grammar.stuck, NO_TOKEN)
    return Sampled(token_ids, None if batch.logprobs is None else Logprobs.of(raw, token_ids, batch.logprobs))


def _adjusted(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Logits after biases, penalties and grammars. A mask commutes with the others, and is final as the last."""
    if not batch.adjusts:
        return logits
    adjusted = logits.clone()
    for adjustment in (batch.bias, batch.penalties, batch.grammar):
        if adjustment is not None:
            adjustment.apply(adjusted)
    return adjusted


def _draw(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """A token drawn from each row: int64 ``[batch]``.

    The tokens lie along the unit interval in the order of their ids, each as wide as it is likely, and the one that
    holds :func:`uniform`'s number is drawn. That order is part of what a seed means: it must not change.
    """
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / batch.temperature.clamp_min(_LOWEST_TEMPERATURE)[:, None]
    probabilities = scaled.softmax(dim=-1)
    if batch.truncation is not None:
        probabilities = batch.truncation.apply(probabilities)
    cumulative = probabilities.double().cumsum(dim=-1)
    total = cumulative[:, -1]
    # Rounding may make the product the total itself, which is beyond the last token.
    threshold = (uniform(batch.seed, batch.position) * total).minimum(total.nextafter(torch.zeros_like(total)))
    token_ids = torch.searchsorted(cumulative, threshold[:, None], right=True).squeeze(1)
    return token_ids.clamp_max(logits.shape[-1] - 1)


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
