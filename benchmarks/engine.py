"""Measure the engine, in this process, beside what the machine could do at best, and print one table.

python -m benchmarks.engine --shape demo            on the CPU, with the demo model: a check that it runs
python -m benchmarks.engine --shape 3b              on a GPU, Qwen2.5-VL-3B's sizes with random weights
python -m benchmarks.engine --shape 3b --huggingface    and transformers' generate beside it

Pictures are prepared before the clock starts; gateway, Triton and picture decoding are not part of it. All numbers of
several samples are medians unless they say p95.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import torch

from benchmarks.figures import ms, percentile
from benchmarks.limits import Limits, timed
from benchmarks.shapes import SHAPES, build, build_huggingface
from protocol.messages import SamplingParameters
from triton_worker.engine.engine import Engine
from triton_worker.engine.kv_cache import BLOCK_TOKENS, KVCache
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.messages import Generate, Picture

GREEDY = SamplingParameters(temperature=0.0, ignore_eos=True)


@dataclass
class Latencies:
    """Seconds to the first token, and between two tokens, of any number of requests."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


class Bench:
    """One engine and the requests it is given."""

    def __init__(self, options: argparse.Namespace) -> None:
        began = time.perf_counter()
        self.options = options
        self.device = torch.device(options.device)
        self.model, self.image_token = build(options.shape, getattr(torch, options.dtype), self.device)
        model = self.model
        block_bytes = KVCache.block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
        most = max(*options.batches, *options.in_flight)
        longest = self.prompt_tokens + options.output_tokens + options.context
        self.engine = Engine(
            self.model,
            self.image_token,
            longest,
            EngineLimits(
                max_sequences=most,
                max_prefill_tokens=options.max_prefill_tokens,
                cpu_kv_cache_bytes=most * (longest // BLOCK_TOKENS + 1) * block_bytes,
            ),
        )
        self.engine.warm_up()
        self.ready_seconds = time.perf_counter() - began
        self._random = np.random.default_rng(0)
        self._count = 0

    @property
    def picture_tokens(self) -> int:
        width, height = self.options.picture
        return int(width * height // 28**2)

    @property
    def prompt_tokens(self) -> int:
        return self.picture_tokens + int(self.options.text_tokens)

    def picture(self) -> Picture:
        width, height = self.options.picture
        return Picture.of(self._random.integers(0, 256, (height, width, 3), dtype=np.uint8))

    def request(self, text_tokens: int, pictures: Sequence[Picture], output_tokens: int) -> Generate:
        """Pictures, then text that no other request has."""
        self._count += 1
        text = self._random.integers(0, min(400, self.image_token), text_tokens).tolist()
        token_ids = [self.image_token] * self.picture_tokens * len(pictures) + text
        stop: frozenset[int] = frozenset()
        return Generate(str(self._count), tuple(token_ids), tuple(pictures), GREEDY, output_tokens, 0, stop)

    def decode_step(self, batch: int) -> float:
        """Seconds of a step that decodes one token of each of ``batch`` sequences."""
        steps = self.options.steps
        requests = [self.request(self.options.context, (), 10**6) for _ in range(batch)]
        for request in requests:
            self.engine.add(request)
        started: set[str] = set()
        while len(started) < batch:
            started.update(token.request_id for token in self.engine.step().tokens)
        seconds = [timed(self.engine.step) for _ in range(steps + 2)][2:]
        for request in requests:
            self.engine.abort(request.request_id)
        return statistics.median(seconds)

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


def huggingface(bench: Bench) -> tuple[float, float]:
    """Seconds to the first token and between two tokens of ``generate``, one request with a picture."""
    model = build_huggingface(bench.model.config, bench.image_token, bench.model.dtype, bench.device)
    request = bench.request(bench.options.text_tokens, [bench.picture()], 1)
    token_ids = torch.tensor([request.prompt_token_ids], device=bench.device)
    width, height = bench.options.picture
    inputs = {
        "input_ids": token_ids,
        "attention_mask": torch.ones_like(token_ids),
        "mm_token_type_ids": (token_ids == bench.image_token).int(),
        "pixel_values": torch.randn(4 * bench.picture_tokens, 1176, device=bench.device, dtype=bench.model.dtype),
        "image_grid_thw": torch.tensor([[1, height // 14, width // 14]], device=bench.device),
    }

    def generate(tokens: int) -> float:
        exact = {"max_new_tokens": tokens, "min_new_tokens": tokens, "eos_token_id": None, "pad_token_id": 0}
        return timed(lambda: model.generate(**inputs, **exact, do_sample=False))

    generate(2)
    first = statistics.median(generate(1) for _ in range(3))
    longer = statistics.median(generate(17) for _ in range(3))
    return first, (longer - first) / 16


def rows(bench: Bench) -> Iterator[tuple[str, str, str]]:
    """What was measured, the result, and the limit."""
    options = bench.options
    limits = Limits(bench.model)
    yield "device copy, read and written", f"{limits.bytes_per_second / 1e9:,.0f} GB/s", ""
    yield f"large {options.dtype} product", f"{limits.flop_per_second / 1e12:,.2f} TFLOP/s", ""
    yield "process start to ready, imports left out", f"{bench.ready_seconds:.1f} s", ""
    for batch in options.batches:
        limit = limits.decode_step(batch, options.context)
        yield f"decode step, batch {batch}, context {options.context}", ms(bench.decode_step(batch)), ms(limit)
    new, again = bench.alone()
    tokens = (bench.picture_tokens, bench.prompt_tokens)
    yield "one request, a new picture: first token", _median(new.first), ms(limits.first_token(*tokens))
    yield "one request, the same picture again: first token", _median(again.first), ""
    yield "one request: one token", _median(new.between), ms(limits.decode_step(1, bench.prompt_tokens))
    for in_flight in options.in_flight:
        count = in_flight * options.rounds
        seconds, latencies = bench.closed_loop(in_flight, count)
        name = f"{in_flight} in flight, {count} requests"
        rate = count * options.output_tokens / seconds
        limit = limits.tokens_per_second(in_flight, *tokens, options.output_tokens)
        yield f"{name}: tokens/s", f"{rate:,.0f}", f"{limit:,.0f}"
        yield f"{name}: requests/s", f"{count / seconds:.2f}", ""
        yield f"{name}: first token, p50 / p95", _p50_p95(latencies.first), ""
        yield f"{name}: one token, p50 / p95", _p50_p95(latencies.between), ""
    if options.huggingface:
        first, between = huggingface(bench)
        yield "Hugging Face generate, one request: first token", ms(first), ms(limits.first_token(*tokens))
        yield "Hugging Face generate, one request: one token", ms(between), ""


def _median(seconds: list[float]) -> str:
    return ms(statistics.median(seconds))


def _p50_p95(seconds: list[float]) -> str:
    return " / ".join(ms(percentile(seconds, percent)) for percent in (50, 95))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _picture(text: str) -> tuple[int, int]:
    width, height = (int(side) for side in text.split("x"))
    if width % 28 or height % 28:
        raise argparse.ArgumentTypeError("both sides must be multiples of 28")
    return width, height


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; their defaults fit the device."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="benchmarks.engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=["demo", *SHAPES], default="3b" if cuda else "demo")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--batches", type=_numbers, default=[1, 8, 32, 64, 128] if cuda else [1, 8, 32])
    parser.add_argument("--in_flight", type=_numbers, default=[8, 32, 64, 128] if cuda else [1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3, help="requests of a closed loop, for each one in flight")
    parser.add_argument("--context", type=int, default=1024 if cuda else 128)
    parser.add_argument("--picture", type=_picture, default=(1036, 728) if cuda else (224, 224), metavar="WxH")
    parser.add_argument("--text_tokens", type=int, default=40)
    parser.add_argument("--output_tokens", type=int, default=128 if cuda else 16)
    parser.add_argument("--steps", type=int, default=50 if cuda else 20, help="decode steps measured for each batch")
    parser.add_argument("--max_prefill_tokens", type=int, default=4096 if cuda else 1000)
    parser.add_argument("--huggingface", action="store_true", help="measure transformers' generate too")
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print, row by row."""
    options = parse()
    if options.device == "cpu":
        torch.set_num_threads(1)  # as the engine process has it on two cores; see engine/process.py
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    print(f"`python -m benchmarks.engine {' '.join(sys.argv[1:])}`, {date.today()}, {hardware}, {options.dtype}, "
          f"Python {platform.python_version()}, torch {torch.__version__}\n")  # fmt: skip
    bench = Bench(options)
    print("| | measured | limit |\n|---|---|---|")
    for row in rows(bench):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
