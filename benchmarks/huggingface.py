"""Transformers beside the engine, with the same weights on the same device: its pace, and its numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine_steps import SteppedEngine
from benchmarks.limits import timed
from benchmarks.shapes import build_huggingface
from protocol.messages import SamplingParameters
from triton_worker.engine.messages import Generate, NewToken

BATCH = 32
"""Sequences of the batch that ``generate`` decodes."""
_CHECKED_TOKENS = 8
_CHECKED_LOGPROBS = 20
_TIMED_TOKENS = 16


@dataclass(frozen=True)
class Pace:
    """Seconds that ``generate`` takes."""

    first: float
    """To the first token of one request with a picture."""
    between: float
    """From one token of it to the next."""
    batch_step: float
    """For one token of each of :data:`BATCH` texts."""


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference of a log probability from that of transformers in float32."""

    ours: float
    theirs: float
    """Of transformers itself, in the dtype of the benchmark."""

    @property
    def acceptable(self) -> bool:
        """Whether ours is such as rounding explains."""
        return self.ours <= 3 * self.theirs + 1e-3


class HuggingFace:
    """Transformers' model beside an engine."""

    def __init__(self, engine: SteppedEngine) -> None:
        self._engine = engine
        self._model = build_huggingface(engine.options.shape, engine.model.dtype, engine.device)

    @torch.inference_mode()
    def pace(self) -> Pace:
        """Measured now. What ``generate`` does before its first token is part of that."""
        options = self._engine.options
        one = self._inputs(self._engine.request(options.text_tokens, [self._engine.picture()], 1))
        texts = [self._inputs(self._engine.request(options.context, (), 1)) for _ in range(BATCH)]
        batch = {name: torch.cat([text[name] for text in texts]) for name in texts[0]}
        first, between = self._timed(one)
        return Pace(first, between, self._timed(batch)[1])

    def _timed(self, inputs: dict[str, Tensor]) -> tuple[float, float]:
        """Seconds to the first token, and from each to the next."""

        def generate(tokens: int) -> float:
            exact = {"max_new_tokens": tokens, "min_new_tokens": tokens, "eos_token_id": None, "pad_token_id": 0}
            return timed(lambda: self._model.generate(**inputs, **exact, do_sample=False))

        generate(2)
        first = statistics.median(generate(1) for _ in range(3))
        longer = statistics.median(generate(1 + _TIMED_TOKENS) for _ in range(3))
        return first, (longer - first) / _TIMED_TOKENS

    @torch.inference_mode()
    def difference(self) -> Difference:
        """Of what the engine answers to a few requests together, with pictures and without.

        Turns the model into one of float32: to be called last.
        """
        asked = SamplingParameters(temperature=0.0, ignore_eos=True, logprobs=_CHECKED_LOGPROBS)
        options, engine = self._engine.options, self._engine
        shown = [[engine.picture()], [], [engine.picture(), engine.picture()], []]
        texts = [options.text_tokens, options.context, options.text_tokens, 1]
        pairs = zip(texts, shown, strict=True)
        requests = [engine.request(text, pictures, _CHECKED_TOKENS, asked) for text, pictures in pairs]
        answers = engine.answers(requests)
        theirs = [self._logprobs(*both) for both in zip(requests, answers, strict=True)]
        self._model.float()
        exact = [self._logprobs(*both) for both in zip(requests, answers, strict=True)]
        ours = [_told(answer) for answer in answers]
        return Difference(_largest(ours, exact), _largest(theirs, exact))

    def _logprobs(self, request: Generate, answer: Sequence[NewToken]) -> list[float]:
        """Transformers' log probabilities of the tokens that the engine told those of."""
        answered = [token.token_id for token in answer]
        inputs = self._inputs(request, answered[:-1])
        logits: Tensor = self._model(**inputs, logits_to_keep=len(answered)).logits[0]
        logprobs = logits.float().log_softmax(-1)
        return [float(logprobs[place, i]) for place, token in enumerate(answer) for i in _told_ids(token)]

    def _inputs(self, request: Generate, answered: Sequence[int] = ()) -> dict[str, Tensor]:
        """Arguments of transformers' model for a request and what it was answered so far."""
        device = self._engine.device
        token_ids = torch.tensor([[*request.prompt_token_ids, *answered]], device=device)
        inputs = {
            "input_ids": token_ids,
            "attention_mask": torch.ones_like(token_ids),
            "mm_token_type_ids": (token_ids == self._engine.image_token).int(),
        }
        if request.pictures:
            processed = _processor()([p.pixels.transpose(2, 0, 1) for p in request.pictures], return_tensors="pt")
            inputs |= {
                "pixel_values": processed["pixel_values"].to(device, next(self._model.parameters()).dtype),
                "image_grid_thw": processed["image_grid_thw"].to(device),
            }
        return inputs


def _processor() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(do_resize=False)


def _told_ids(token: NewToken) -> list[int]:
    assert token.logprobs is not None
    return [token.token_id, *(token_id for token_id, _ in token.logprobs.likeliest)]


def _told(answer: Sequence[NewToken]) -> list[float]:
    """The log probabilities that the engine told, in the order of the ids."""
    told = [token.logprobs for token in answer if token.logprobs is not None]
    return [value for logprobs in told for value in (logprobs.chosen, *(p for _, p in logprobs.likeliest))]


def _largest(some: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    both = zip(some, others, strict=True)
    return max(abs(a - b) for one, other in both for a, b in zip(one, other, strict=True))
