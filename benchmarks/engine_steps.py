"""An engine that this process steps itself: requests in, and when their tokens came out."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil
import torch

from benchmarks.shapes import build
from protocol.messages import SamplingParameters
from triton_worker.engine.engine import Engine
from triton_worker.engine.kv_cache import KVCache, blocks_for
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.messages import Generate, NewToken, Picture

GREEDY = SamplingParameters(temperature=0.0, ignore_eos=True)

_SETTLING_STEPS = 5
"""Decode steps before those that are measured."""


@dataclass
class Latencies:
    """Seconds to the first token, and between two tokens, of any number of requests."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


class SteppedEngine:
    """The engine of a benchmark's options, warmed up.

    A step may return the tokens of the one before it: nothing here takes a step's result for what it computed.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.model, self.image_token = build(options.shape, getattr(torch, options.dtype), self.device)
        model, most = self.model, max(*options.batches, *options.in_flight)
        longest = max(
            self.prompt_tokens + self.picture_tokens + options.output_tokens,  # two pictures are compared with others
            options.context + self._decoded_tokens(most),
        )
        block_bytes = KVCache.block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
        limits = EngineLimits(
            max_sequences=most,
            max_prefill_tokens=options.max_prefill_tokens,
            max_picture_tokens=self.picture_tokens,
            kv_cache_bytes=None if self.device.type == "cuda" else most * blocks_for(longest) * block_bytes,
        )
        self.engine = Engine(model, self.image_token, longest, limits)
        self.engine.warm_up()
        self.ready_seconds = time.time() - psutil.Process().create_time()
        """Since the process was started, imports included."""
        self._random = np.random.default_rng(0)
        self._count = 0

    @property
    def picture_tokens(self) -> int:
        """Embeddings of a picture."""
        width, height = self.options.picture
        return int(width * height // 28**2)

    @property
    def prompt_tokens(self) -> int:
        """Of a picture and the text behind it."""
        return self.picture_tokens + int(self.options.text_tokens)

    def picture(self) -> Picture:
        """One that was not there before."""
        width, height = self.options.picture
        pixels = np.frombuffer(self._random.bytes(width * height * 3), dtype=np.uint8)
        return Picture.of(pixels.reshape(height, width, 3).copy())

    def request(
        self,
        text_tokens: int,
        pictures: Sequence[Picture],
        output_tokens: int,
        sampling: SamplingParameters = GREEDY,
    ) -> Generate:
        """Pictures, each before at least one token of text that no other request has."""
        self._count += 1
        text = iter(self._random.integers(0, min(400, self.image_token), text_tokens).tolist())
        token_ids = [i for _ in pictures for i in (*[self.image_token] * self.picture_tokens, next(text))] + list(text)
        stop: frozenset[int] = frozenset()
        return Generate(str(self._count), tuple(token_ids), tuple(pictures), sampling, output_tokens, 0, stop)

    @contextlib.contextmanager
    def decoding(self, batch: int) -> Iterator[None]:
        """As long as the context lasts, each step decodes one token of each of ``batch`` sequences."""
        requests = [self.request(self.options.context, (), self._decoded_tokens(batch)) for _ in range(batch)]
        for request in requests:
            self.engine.add(request)
        started: set[str] = set()
        while len(started) < batch:
            started.update(token.request_id for token in self.engine.step().tokens)
        for _ in range(_SETTLING_STEPS):
            self.engine.step()
        yield
        for request in requests:
            self.engine.abort(request.request_id)
        self.drain()

    def _decoded_tokens(self, batch: int) -> int:
        """As many as a sequence may have got when the steps in :meth:`decoding` are over."""
        prefill_steps = -(-batch * self.options.context // self.options.max_prefill_tokens)
        return prefill_steps + _SETTLING_STEPS + 2 * int(self.options.steps) + 10

    def step_seconds(self) -> float:
        """The median from the return of one step to that of the next; while :meth:`decoding`."""
        returned = []
        for _ in range(self.options.steps + 1):
            self.engine.step()
            returned.append(time.perf_counter())
        return statistics.median(np.diff(returned).tolist())

    def closed_loop(self, in_flight: int, count: int) -> tuple[float, Latencies]:
        """Seconds for ``count`` requests, each with a new picture, of which so many are in flight at any time."""
        requests = [self.request(self.options.text_tokens, [self.picture()], self.options.output_tokens)
                    for _ in range(count)]  # fmt: skip
        return self.serve(requests, in_flight)

    def alone(self) -> tuple[Latencies, Latencies]:
        """One request at a time: with new pictures; with the same ones before another text."""
        results = (Latencies(), Latencies())
        pictures = [self.picture() for _ in range(5)]
        for latencies in results:
            for picture in pictures:
                request = self.request(self.options.text_tokens, [picture], self.options.output_tokens)
                _, one = self.serve([request], 1)
                latencies.first += one.first
                latencies.between += one.between
        return results

    def serve(self, requests: Sequence[Generate], in_flight: int) -> tuple[float, Latencies]:
        """Seconds that all requests took together."""
        latencies = Latencies()
        last: dict[str, float] = {}
        waiting: Iterator[Generate] = iter(requests)
        began = time.perf_counter()

        def add_next() -> None:
            request = next(waiting, None)
            if request is not None:
                last[request.request_id] = time.perf_counter()
                self.engine.add(request)

        for _ in range(in_flight):
            add_next()
        while self.engine.has_work:
            tokens = self.engine.step().tokens
            now = time.perf_counter()
            for token in tokens:
                seconds = now - last[token.request_id]
                (latencies.first if token.first is not None else latencies.between).append(seconds)
                last[token.request_id] = now
                if token.finish_reason is not None:
                    add_next()
        return time.perf_counter() - began, latencies

    def answers(self, requests: Sequence[Generate]) -> list[list[NewToken]]:
        """What all requests together are answered, in their order."""
        for request in requests:
            self.engine.add(request)
        tokens: dict[str, list[NewToken]] = {request.request_id: [] for request in requests}
        while self.engine.has_work:
            for token in self.engine.step().tokens:
                tokens[token.request_id].append(token)
        return list(tokens.values())

    def drain(self) -> None:
        """Step until there is nothing left to do."""
        while self.engine.has_work:
            self.engine.step()
