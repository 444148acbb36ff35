"""Sequences without a model, for tests of what decides about them."""

import hashlib

import numpy as np
import torch

from protocol.messages import SamplingParameters
from triton_worker.engine.messages import Generate, Picture
from triton_worker.engine.sequence import PictureSpan, Sequence

END = 7
IMAGE = 9


def picture_of(tokens: int, content: int = 0) -> Picture:
    """A picture of one row of units; pictures of equal content are equal."""
    pixels = np.full((28, 28 * tokens, 3), content, np.uint8)
    return Picture(pixels, hashlib.sha256(f"{tokens} {content}".encode()).digest())


def sequence(
    name: str, prompt: int | list[int | Picture], max_tokens: int = 10, cache_salt: str | None = None
) -> Sequence:
    """`prompt`: as many tokens, or token ids and pictures. A prompt that is a number is like no other's."""
    parts = (
        [int.from_bytes(hashlib.sha256(name.encode()).digest()[:5], "big")] * prompt
        if isinstance(prompt, int)
        else prompt
    )
    token_ids: list[int] = []
    spans = []
    for part in parts:
        if isinstance(part, Picture):
            start = len(token_ids)
            token_ids += [IMAGE] * (part.pixels.shape[1] // 28)
            spans.append(PictureSpan(start, len(token_ids), part))
        else:
            token_ids.append(part)
    request = Generate(
        request_id=name,
        prompt_token_ids=tuple(token_ids),
        pictures=tuple(span.picture for span in spans),
        sampling=SamplingParameters(),
        max_tokens=max_tokens,
        seed=0,
        stop_token_ids=frozenset({END}),
        cache_salt=cache_salt,
    )
    return Sequence(request, torch.arange(len(token_ids)).expand(3, -1), len(token_ids), tuple(spans))
