"""min_p, top_k and top_p: dropping unlikely tokens.

All three keep the tokens that are at least as likely as some bound, so equally likely tokens are kept or dropped
together and only the bound is searched for, never an order of the whole vocabulary where fewer tokens tell it.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from protocol.messages import SamplingParameters
from triton_worker.transfer import send

_BOUNDED_TOP_K = 1024
"""Up to here selecting the k likeliest is much quicker than sorting a vocabulary."""


@dataclass(frozen=True)
class Truncation:
    """Which rows of a batch drop what. Greedy rows drop nothing."""

    min_p: Tensor | None
    """float32 ``[batch]``; ``None`` where no row has one"""
    groups: tuple[_Group, ...]

    @classmethod
    def of(cls, sampling: SequenceOf[SamplingParameters], device: torch.device) -> Truncation | None:
        """That of a batch with these parameters; ``None`` where no row drops anything."""
        drawn = [row for row, s in enumerate(sampling) if s.temperature > 0]
        cut = [row for row in drawn if sampling[row].top_k > 0 or sampling[row].top_p < 1]
        # A row's group follows from its own parameters, so that its rounding does not depend on the rows beside it.
        bounded = [row for row in cut if 0 < sampling[row].top_k <= _BOUNDED_TOP_K]
        sorted_rows = [row for row in cut if not 0 < sampling[row].top_k <= _BOUNDED_TOP_K]
        kinds = ((bounded, True), (sorted_rows, False))
        groups = tuple(_Group.of(rows, is_bounded, sampling, device) for rows, is_bounded in kinds if rows)
        min_p = None
        if any(sampling[row].min_p > 0 for row in drawn):
            min_p = send([s.min_p for s in sampling], device, torch.float32)
        return cls(min_p, groups) if groups or min_p is not None else None

    def apply(self, probabilities: Tensor) -> Tensor:
        """``probabilities`` (float32 ``[batch, vocabulary]``, overwritten) with a zero for each dropped token."""
        if self.min_p is not None:
            bound = self.min_p[:, None] * probabilities.amax(dim=-1, keepdim=True)
            probabilities = torch.where(probabilities < bound, 0.0, probabilities)
        for group in self.groups:
            of_group = probabilities[group.rows]
            probabilities[group.rows] = torch.where(of_group < group.bound(of_group), 0.0, of_group)
        return probabilities


@dataclass(frozen=True)
class _Group:
    """Rows whose bound is found in the same way."""

    rows: Tensor
    """int64 ``[group]``"""
    top_k: Tensor
    """int64 ``[group, 1]``; 0 is all"""
    top_p: Tensor
    """float64 ``[group, 1]``"""
    widest: int | None
    """The largest ``top_k``; ``None``: everything is sorted"""

    @classmethod
    def of(
        cls, rows: list[int], is_bounded: bool, sampling: SequenceOf[SamplingParameters], device: torch.device
    ) -> _Group:
        top_k = [sampling[row].top_k for row in rows]
        return cls(
            rows=send(rows, device),
            top_k=send(top_k, device)[:, None],
            top_p=send([sampling[row].top_p for row in rows], device, torch.float64)[:, None],
            widest=max(top_k) if is_bounded else None,
        )

    def bound(self, probabilities: Tensor) -> Tensor:
        """The smallest probability that each row keeps, float32 ``[group, 1]``; the likeliest token is always kept."""
        if self.widest is None:
            falling = probabilities.sort(dim=-1, descending=True).values
        else:
            falling = probabilities.topk(min(self.widest, probabilities.shape[-1]), dim=-1).values
        rank = torch.arange(falling.shape[-1], device=falling.device)
        within_k = (rank < self.top_k) | (self.top_k == 0)
        mass = torch.where(within_k, falling, 0.0).double()
        cumulative = mass.cumsum(dim=-1)
        within_p = (cumulative - mass < self.top_p * cumulative[:, -1:]) | (self.top_p >= 1)
        last = (within_k & within_p).sum(dim=-1, keepdim=True) - 1
        return falling.gather(1, last.clamp_min(0))
