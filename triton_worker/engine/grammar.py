"""Which tokens a grammar lets through next.

Compiling happens in the engine's process, since a compiled grammar cannot be sent to it: about 1 ms for what callers
usually send and 10 ms for an enum of thousands of values, measured with a vocabulary of 150,000; the first mask of a
grammar took up to 30 ms, later ones from 5 µs. The front has let only those through that a probe could compile.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray
from torch import Tensor

from protocol.messages import Grammar
from triton_worker.engine.grammar_source import library_grammar, limits
from triton_worker.transfer import send

if TYPE_CHECKING:
    from triton_worker.engine.sequence import Sequence

logger = logging.getLogger(__name__)

_COMPILED_GRAMMARS = 32
_WORD_BITS = 32


class GrammarError(ValueError):
    """A grammar that does not compile; the front refuses such ones, so this is a fault of ours."""


class GrammarCompiler:
    """Compiles grammars for one tokenizer, and keeps those that were used last: their automata grow with use."""

    def __init__(self, tokenizer_json: str, vocabulary_size: int, end_token_ids: frozenset[int], threads: int) -> None:
        """Takes a second or two for a vocabulary of 150,000.

        ``tokenizer_json`` is the content of a Hugging Face ``tokenizer.json``; ``threads`` compute masks.
        """
        self.vocabulary_size = vocabulary_size
        # A generation_config.json may name more than the tokenizer has.
        self._end_token_ids = sorted(token_id for token_id in end_token_ids if token_id < vocabulary_size)
        eos_token = self._end_token_ids[0] if self._end_token_ids else None
        self._tokenizer = LLTokenizer(tokenizer_json, n_vocab=vocabulary_size, eos_token=eos_token)
        self._executor = LLExecutor(threads)
        self._compiled = functools.lru_cache(_COMPILED_GRAMMARS)(self._compile)

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        """A matcher at the beginning of the grammar.

        Raises:
            GrammarError: it does not compile.
        """
        return GrammarMatcher(
            self._compiled(grammar).deep_copy(), self._executor, self.vocabulary_size, self._end_token_ids
        )

    def _compile(self, grammar: Grammar) -> LLMatcher:
        try:
            matcher = LLMatcher(self._tokenizer, library_grammar(grammar), log_level=0, limits=limits())
        except ValueError as error:
            raise GrammarError(str(error)) from error
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        return matcher


class GrammarMatcher:
    """Where one answer is in its grammar."""

    def __init__(
        self, matcher: LLMatcher, executor: LLExecutor, vocabulary_size: int, end_token_ids: list[int]
    ) -> None:
        self._matcher = matcher
        self._executor = executor
        self._vocabulary_size = vocabulary_size
        self._end_token_ids = end_token_ids
        self._ended = False

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return self._ended or (self._matcher.is_stopped() and not self._matcher.is_error())

    def advance(self, token_id: int) -> None:
        """Take the token that was chosen. One that does not fit makes a matcher that lets nothing through."""
        if token_id in self._end_token_ids:
            self._ended = True
        else:
            self._matcher.consume_token(token_id)

    @staticmethod
    def masks(matchers: SequenceOf[GrammarMatcher]) -> NDArray[np.int32]:
        """The tokens that each lets through, a bit each: ``[matchers, vocabulary / 32]``, token 0 the lowest bit.

        All end tokens are let through where the grammar is complete, and nothing at all where it became too complex.
        """
        words = -(-matchers[0]._vocabulary_size // _WORD_BITS)
        masks = np.zeros((len(matchers), words), dtype=np.int32)
        going_on = [(m._matcher, row) for row, m in enumerate(matchers) if not m._matcher.is_stopped()]
        if going_on:
            fill_next_token_bitmask_par(matchers[0]._executor, going_on, masks)
        for row, matcher in zip(masks.view(np.uint32), matchers, strict=True):
            matcher._correct(row)
        return masks

    def _correct(self, row: NDArray[np.uint32]) -> None:
        """The library knows a single end token, and lets it through where an error made it stop."""
        if self._matcher.is_error():
            logger.warning("A grammar cannot be followed any further: %s", self._matcher.get_error())
            row[:] = 0
            return
        complete = self.finished or self._matcher.is_accepting()
        for token_id in self._end_token_ids:
            bit = np.uint32(1 << token_id % _WORD_BITS)
            if complete:
                row[token_id // _WORD_BITS] |= bit
            else:
                row[token_id // _WORD_BITS] &= ~bit


@dataclass(frozen=True)
class GrammarMask:
    """The masks of a batch's sequences with grammars, on the device of the logits."""

    rows: Tensor
    """int64 ``[constrained]``: rows of the batch"""
    bits: Tensor
    """int32 ``[constrained, vocabulary / 32]``"""
    stuck: Tensor
    """bool ``[batch]``: rows for which no token is let through"""

    @classmethod
    def of(cls, sequences: SequenceOf[Sequence], device: torch.device) -> GrammarMask | None:
        """The masks of those ``sequences`` that have grammars; ``None`` where none has."""
        matchers = {row: s.grammar for row, s in enumerate(sequences) if s.grammar is not None and not s.ended}
        if not matchers:
            return None
        masks = GrammarMatcher.masks(list(matchers.values()))
        stuck = torch.zeros(len(sequences), dtype=torch.bool)
        stuck[list(matchers)] = torch.from_numpy(~masks.any(axis=1))
        return cls(send(list(matchers), device), send(masks, device), send(stuck, device))

    def apply(self, logits: Tensor) -> None:
        """Set the logits (``[batch, vocabulary]``) of all other tokens to minus infinity."""
        bit = torch.arange(_WORD_BITS, dtype=torch.int32, device=logits.device)
        allowed = (self.bits[:, :, None] >> bit & 1).flatten(1)[:, : logits.shape[1]]
        logits[self.rows] = logits[self.rows].masked_fill(allowed == 0, -torch.inf)
