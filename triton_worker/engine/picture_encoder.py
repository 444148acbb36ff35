"""Picture embeddings: computed once for each picture, and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from torch import Tensor

from triton_worker.engine.messages import Picture
from triton_worker.engine.scheduler import Chunk
from triton_worker.engine.sequence import PictureSpan, Sequence
from triton_worker.models.interface import MultimodalModel
from triton_worker.transfer import send


class PictureKey(NamedTuple):
    """What embeddings are found by: requests of different salts do not share them."""

    cache_salt: str | None
    digest: bytes


class PictureCache:
    """Embeddings within a number of bytes; those that were used longest ago go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._embeddings: OrderedDict[PictureKey, Tensor] = OrderedDict()
        self.used_bytes = 0

    def get(self, key: PictureKey) -> Tensor | None:
        """The embeddings of a picture, if they are here."""
        if key in self._embeddings:
            self._embeddings.move_to_end(key)
        return self._embeddings.get(key)

    def put(self, key: PictureKey, embeddings: Tensor) -> None:
        """Keep embeddings that were not here."""
        self._embeddings[key] = embeddings
        self.used_bytes += embeddings.nbytes

    def evict(self, needed: Collection[PictureKey]) -> None:
        """Drop what is too much, but nothing that is ``needed``."""
        for key in list(self._embeddings) if self.used_bytes > self._max_bytes else ():
            if key not in needed:
                self.used_bytes -= self._embeddings.pop(key).nbytes
            if self.used_bytes <= self._max_bytes:
                break


class PictureEncoder:
    """Runs the vision tower over the pictures that a step needs and that are not known yet.

    Between two steps at most one prompt is half computed; its picture stays even where the cache has no room, so that
    no picture is encoded once a chunk. The pixels belong to the request and stay until it ends: a preempted one may
    find neither its KV blocks nor its embeddings again.
    """

    def __init__(self, model: MultimodalModel, cache_bytes: int, batch_tokens: int) -> None:
        """``batch_tokens``: embeddings that the tower computes at once, at most, or one picture's."""
        self._model = model
        self._batch_tokens = batch_tokens
        self._cache = PictureCache(cache_bytes)
        self.queries = 0
        self.hits = 0

    @property
    def used_bytes(self) -> int:
        """What the embeddings kept take."""
        return self._cache.used_bytes

    def encode(self, chunks: Iterable[Chunk]) -> dict[PictureKey, Tensor]:
        """The embeddings, ``[embeddings, hidden_size]`` each, of every picture that the chunks touch."""
        embeddings: dict[PictureKey, Tensor] = {}
        missing: dict[PictureKey, Picture] = {}
        read_again: set[PictureKey] = set()
        for chunk in chunks:
            for span in chunk.pictures:
                key = key_of(chunk.sequence, span)
                known = self._cache.get(key)
                if known is not None:
                    embeddings[key] = known
                if _begins_to_read(chunk, span):
                    self.queries += 1
                    self.hits += known is not None or key in missing
                if known is None:
                    missing[key] = span.picture
                if span.stop > chunk.stop:
                    read_again.add(key)
        for batch in self._batches(missing):
            pictures = [send(missing[key].pixels, self._model.device) for key in batch]
            for key, encoded in zip(batch, self._model.encode_pictures(pictures), strict=True):
                embeddings[key] = encoded.clone()  # a view would keep the whole batch alive
                self._cache.put(key, embeddings[key])
        self._cache.evict(needed=read_again)
        return embeddings

    def _batches(self, pictures: dict[PictureKey, Picture]) -> Iterator[list[PictureKey]]:
        batch: list[PictureKey] = []
        tokens = 0
        for key, picture in pictures.items():
            count = self._model.picture_tokens(*picture.pixels.shape[:2])
            if batch and tokens + count > self._batch_tokens:
                yield batch
                batch, tokens = [], 0
            batch.append(key)
            tokens += count
        if batch:
            yield batch


def key_of(sequence: Sequence, span: PictureSpan) -> PictureKey:
    """The key of one of a sequence's pictures."""
    return PictureKey(sequence.request.cache_salt, span.picture.digest)


def _begins_to_read(chunk: Chunk, span: PictureSpan) -> bool:
    """Whether no earlier chunk of the same prefill touched the picture."""
    return chunk.start <= max(span.start, chunk.sequence.reused_tokens)
