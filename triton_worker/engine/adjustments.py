"""What changes logits before anything is drawn: biases and penalties."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protocol.messages import SamplingParameters
from triton_worker.transfer import send

if TYPE_CHECKING:
    from triton_worker.engine.sequence import Sequence


@dataclass
class Adjustments:
    """What one sequence keeps on the device from step to step, so that a step sends only its newest token there."""

    bias_token_ids: Tensor
    """int64 ``[biased]``"""
    bias: Tensor
    """float32 ``[biased]``"""
    counts: Tensor
    """int32 ``[2, vocabulary]``: how often the prompt and the answer have each token; empty without penalties"""
    counted: int = 0
    """Tokens of the answer that are in ``counts``."""

    @classmethod
    def of(cls, sequence: Sequence, vocabulary: int, device: torch.device) -> Adjustments:
        """Those of a sequence whose answer is not counted yet."""
        sampling = sequence.request.sampling
        counts = torch.zeros((2, vocabulary if _is_penalised(sampling) else 0), dtype=torch.int32)
        if sampling.repetition_penalty != 1:
            prompt = torch.tensor(sequence.request.prompt_token_ids)
            counts[0] = torch.bincount(prompt, minlength=vocabulary)[:vocabulary]
        # A token that is only read, such as one that stands for a picture, may have no logit.
        biased = {token_id: bias for token_id, bias in sampling.logit_bias.items() if token_id < vocabulary}
        return cls(
            bias_token_ids=send(list(biased), device, torch.int64),
            bias=send(list(biased.values()), device, torch.float32),
            counts=send(counts, device),
        )


@dataclass(frozen=True)
class LogitBias:
    """The biases of a batch, one entry a biased token, in three tensors ``[biased]``."""

    rows: Tensor
    token_ids: Tensor
    bias: Tensor

    @classmethod
    def of(cls, sequences: SequenceOf[Sequence], vocabulary: int, device: torch.device) -> LogitBias | None:
        """Those of ``sequences``; ``None`` where none has any."""
        biased = [row for row, sequence in enumerate(sequences) if sequence.request.sampling.logit_bias]
        if not biased:
            return None
        kept = [_adjustments(sequences[row], vocabulary, device) for row in biased]
        repeats = torch.tensor([len(k.bias) for k in kept])
        return cls(
            rows=send(torch.tensor(biased).repeat_interleave(repeats), device),
            token_ids=torch.cat([k.bias_token_ids for k in kept]),
            bias=torch.cat([k.bias for k in kept]),
        )

    def apply(self, logits: Tensor) -> None:
        """Add the biases to ``logits`` (``[batch, vocabulary]``)."""
        logits.index_put_((self.rows, self.token_ids), self.bias, accumulate=True)


@dataclass(frozen=True)
class Penalties:
    """The penalties of those rows of a batch that ask for any."""

    rows: Tensor
    """int64 ``[penalised]``"""
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    """float32 ``[penalised, 1]``, these three"""
    counts: Tensor
    """int32 ``[penalised, 2, vocabulary]``, as in :class:`Adjustments`"""

    @classmethod
    def of(cls, sequences: SequenceOf[Sequence], vocabulary: int, device: torch.device) -> Penalties | None:
        """Those of ``sequences``; ``None`` where none asks for any. Counts their newest tokens."""
        rows = [row for row, sequence in enumerate(sequences) if _is_penalised(sequence.request.sampling)]
        if not rows:
            return None
        sampling = [sequences[row].request.sampling for row in rows]
        strengths = send(
            [[s.repetition_penalty, s.presence_penalty, s.frequency_penalty] for s in sampling], device, torch.float32
        )
        repetition, presence, frequency = strengths.tensor_split(3, dim=1)
        counts = _count_newest([sequences[row] for row in rows], vocabulary, device)
        return cls(send(rows, device), repetition, presence, frequency, counts)

    def apply(self, logits: Tensor) -> None:
        """Penalise tokens in ``logits`` (``[batch, vocabulary]``).

        The repetition penalty is that of Keskar et al., "CTRL", 2019, as in Hugging Face transformers; the other two
        are those of OpenAI's API.
        """
        penalised = logits[self.rows]
        answer = self.counts[:, 1]
        divided = torch.where(penalised > 0, penalised / self.repetition, penalised * self.repetition)
        penalised = torch.where((self.counts > 0).any(dim=1), divided, penalised)
        penalised = penalised - self.presence * (answer > 0) - self.frequency * answer
        logits[self.rows] = penalised.nan_to_num()


def _is_penalised(sampling: SamplingParameters) -> bool:
    strengths = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    return strengths != (1.0, 0.0, 0.0)


def _adjustments(sequence: Sequence, vocabulary: int, device: torch.device) -> Adjustments:
    if sequence.adjustments is None:
        sequence.adjustments = Adjustments.of(sequence, vocabulary, device)
    return sequence.adjustments


def _count_newest(sequences: SequenceOf[Sequence], vocabulary: int, device: torch.device) -> Tensor:
    """The counts of all ``sequences``, stacked, with the tokens that were not counted yet.

    Each sequence then keeps its part of the stack: one copy and one addition a step, however many sequences there are.
    """
    kept = [_adjustments(sequence, vocabulary, device) for sequence in sequences]
    counts = torch.stack([k.counts for k in kept])
    newest = [
        (row, token_id)
        for row, (sequence, k) in enumerate(zip(sequences, kept, strict=True))
        for token_id in sequence.output_token_ids[k.counted :]
    ]
    if newest:
        rows, token_ids = send(newest, device).unbind(dim=1)
        answers = counts[:, 1]
        answers.index_put_((rows, token_ids), torch.ones_like(rows, dtype=torch.int32), accumulate=True)
    for row, (sequence, k) in enumerate(zip(sequences, kept, strict=True)):
        k.counts, k.counted = counts[row], len(sequence.output_token_ids)
    return counts
