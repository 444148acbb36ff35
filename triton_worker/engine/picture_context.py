"""What cross-attention layers let the tokens of a sequence attend to: pictures, beside the sequence's own tokens."""

from __future__ import annotations

import hashlib
import itertools
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from triton_worker.engine.block_keys import root_key
from triton_worker.engine.kv_cache import BLOCK_TOKENS
from triton_worker.engine.messages import Picture


@dataclass(frozen=True)
class PictureRun:
    """Tokens ``start`` to ``stop`` of a sequence, which see the first ``length`` embeddings in ``blocks``."""

    start: int
    stop: int
    blocks: Sequence[int] = ()
    length: int = 0


@dataclass(eq=False)
class PictureContext:
    """Pictures that stand side by side in a prompt, whose embeddings follow one another without a gap.

    The tokens after them see all of them, up to the next picture that stands behind text. Its blocks are blocks of
    pictures (:class:`~triton_worker.engine.kv_cache.KVCache`), and hold the same wherever the same pictures stand side
    by side. Only the scheduler changes which they are, and whether they are computed.
    """

    start: int
    """The first picture's token; one token stands for each."""
    pictures: tuple[Picture, ...]
    lengths: tuple[int, ...]
    """How many embeddings each has."""
    block_tokens: int
    """Embeddings that a block holds."""
    stop: int = sys.maxsize
    """The first token that sees others."""
    blocks: array[int] = field(default_factory=lambda: array("i"))
    is_computed: bool = False
    """Whether keys and values are in the blocks, or will be before any later step reads them."""

    @property
    def block_count(self) -> int:
        """Blocks that it fills."""
        return -(-sum(self.lengths) // self.block_tokens)

    def keys(self, cache_salt: str | None) -> list[bytes]:
        """The keys of its blocks, which are like those of no text."""
        hashed = hashlib.sha256(b"pictures" + root_key(cache_salt) + b"".join(p.digest for p in self.pictures)).digest()
        return [hashlib.sha256(hashed + place.to_bytes(8, "big")).digest() for place in range(self.block_count)]

    def runs(self) -> Iterator[PictureRun]:
        """A picture's own token sees those to its left, and it."""
        for place, length in enumerate(itertools.accumulate(self.lengths)):
            last = place == len(self.lengths) - 1
            yield PictureRun(self.start + place, self.stop if last else self.start + place + 1, self.blocks, length)


def picture_contexts(
    shown: Sequence[tuple[int, Picture]], lengths: Sequence[int], cross_span: int
) -> tuple[PictureContext, ...]:
    """Those of a prompt: each picture with the place of its token, in order, and how many embeddings it has."""
    contexts: list[PictureContext] = []
    for (place, picture), length in zip(shown, lengths, strict=True):
        last = contexts[-1] if contexts else None
        if last is not None and place == last.start + len(last.pictures):
            last.pictures += (picture,)
            last.lengths += (length,)
            continue
        if last is not None:
            last.stop = place
        contexts.append(PictureContext(place, (picture,), (length,), cross_span * BLOCK_TOKENS))
    return tuple(contexts)


def runs_of(contexts: Sequence[PictureContext], start: int, stop: int) -> list[PictureRun]:
    """Tokens ``start`` to ``stop`` of a sequence, cut into runs that see the same; those that see nothing included."""
    runs = []
    begin = contexts[0].start if contexts else stop
    if start < begin:
        runs.append(PictureRun(start, min(begin, stop)))
    for run in itertools.chain.from_iterable(context.runs() for context in contexts):
        first, last = max(run.start, start), min(run.stop, stop)
        if first < last:
            runs.append(PictureRun(first, last, run.blocks, run.length))
    return runs
