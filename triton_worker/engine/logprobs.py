"""How likely tokens were, for those who ask."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from triton_worker.transfer import send

if TYPE_CHECKING:
    from triton_worker.engine.sequence import Sequence


@dataclass(frozen=True)
class LogprobsAsked:
    """Which rows of a batch ask for log probabilities, and how many of the likeliest tokens each wants."""

    rows: Tensor
    """int64 ``[asking]``, on the device of the logits"""
    likeliest: dict[int, int]
    """Row → tokens, in the order of ``rows``."""

    @classmethod
    def of(cls, sequences: SequenceOf[Sequence], device: torch.device) -> LogprobsAsked | None:
        """What ``sequences`` ask for; ``None`` where none does."""
        asked = {row: s.request.sampling.logprobs for row, s in enumerate(sequences)}
        likeliest = {row: count for row, count in asked.items() if count is not None}
        return cls(send(list(likeliest), device), likeliest) if likeliest else None


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of the probabilities that the model itself gave, before any sampling parameter."""

    asked: LogprobsAsked
    chosen: Tensor
    """float32 ``[asking]``"""
    likeliest_token_ids: Tensor
    """int64 ``[asking, widest]``, likeliest first"""
    likeliest: Tensor
    """float32 ``[asking, widest]``"""

    @classmethod
    def of(cls, logits: Tensor, token_ids: Tensor, asked: LogprobsAsked) -> Logprobs:
        """``logits`` are finite, ``[batch, vocabulary]``; ``token_ids`` are those chosen, ``[batch]``."""
        logprobs = logits[asked.rows].log_softmax(dim=-1)
        chosen = logprobs.gather(1, token_ids[asked.rows].clamp_min(0)[:, None]).squeeze(1)
        likeliest = logprobs.topk(min(max(asked.likeliest.values()), logits.shape[-1]), dim=-1)
        return cls(asked, chosen, likeliest.indices, likeliest.values)
