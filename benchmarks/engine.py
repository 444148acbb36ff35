"""Measure the engine, in this process, beside what the machine could do at best and beside transformers; one table.

python -m benchmarks.engine --shape demo        on the CPU, with the demo model: a check that it runs
python -m benchmarks.engine --shape 3b          on a GPU, Qwen2.5-VL-3B's sizes with random weights

Pictures are prepared before the clock starts; gateway, Triton and picture decoding are not part of it. All numbers of
several samples are medians unless they say p95. First, log probabilities that the engine tells are compared with those
of transformers in float32, on the same weights; exits with 1 where rounding does not explain the difference.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import torch

from benchmarks.arguments import numbers, size
from benchmarks.engine_steps import SteppedEngine
from benchmarks.figures import ms, percentile, table
from benchmarks.huggingface import BATCH, HuggingFace, Pace
from benchmarks.kernel_times import write_kernel_times
from benchmarks.limits import Limits
from benchmarks.shapes import SHAPES

Row = tuple[str, str, str, str]
"""What was measured, the result, the limit, and what transformers' ``generate`` takes."""


def rows(engine: SteppedEngine, theirs: Pace | None) -> Iterator[Row]:
    """Measure; ``theirs`` is what transformers needs for the same."""
    options, limits = engine.options, Limits(engine.model)
    yield "device copy, read and written", f"{limits.bytes_per_second / 1e9:,.0f} GB/s", "", ""
    yield f"large {options.dtype} product", f"{limits.flop_per_second / 1e12:,.2f} TFLOP/s", "", ""
    yield "process start to ready", f"{engine.ready_seconds:.1f} s", "", ""
    for batch in options.batches:
        with engine.decoding(batch):
            seconds = engine.step_seconds()
        told = ms(theirs.batch_step) if theirs is not None and batch == BATCH else ""
        limit = limits.decode_step(batch, options.context)
        yield f"decode step, batch {batch}, context {options.context}", ms(seconds), ms(limit), told
    new, again = engine.alone()
    tokens = (engine.picture_tokens, engine.prompt_tokens)
    first, between = (ms(theirs.first), ms(theirs.between)) if theirs is not None else ("", "")
    yield "one request, a new picture: first token", _median(new.first), ms(limits.first_token(*tokens)), first
    yield "one request, the same picture again: first token", _median(again.first), "", ""
    step = limits.decode_step(1, engine.prompt_tokens)
    yield "one request: one token", _median(new.between), ms(step), between
    for in_flight in options.in_flight:
        yield from _closed_loop(engine, limits, in_flight)


def _closed_loop(engine: SteppedEngine, limits: Limits, in_flight: int) -> Iterator[Row]:
    count, length = in_flight * engine.options.rounds, engine.options.output_tokens
    seconds, latencies = engine.closed_loop(in_flight, count)
    name = f"{in_flight} in flight, {count} requests"
    limit = limits.tokens_per_second(in_flight, engine.picture_tokens, engine.prompt_tokens, length)
    yield f"{name}: tokens/s", f"{count * length / seconds:,.0f}", f"{limit:,.0f}", ""
    yield f"{name}: requests/s", f"{count / seconds:.2f}", "", ""
    yield f"{name}: first token, p50 / p95", _p50_p95(latencies.first), "", ""
    yield f"{name}: one token, p50 / p95", _p50_p95(latencies.between), "", ""


def _median(seconds: list[float]) -> str:
    return ms(statistics.median(seconds))


def _p50_p95(seconds: list[float]) -> str:
    return " / ".join(ms(percentile(seconds, percent)) for percent in (50, 95))


def _picture(text: str) -> tuple[int, int]:
    width, height = size(text)
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
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 64, 128] if cuda else [1, 8, 32])
    parser.add_argument("--in_flight", type=numbers, default=[8, 32, 64, 128] if cuda else [1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3, help="requests of a closed loop, for each one in flight")
    parser.add_argument("--context", type=int, default=1024 if cuda else 128)
    parser.add_argument("--picture", type=_picture, default=(1036, 728) if cuda else (224, 224), metavar="WxH")
    parser.add_argument("--text_tokens", type=int, default=40)
    parser.add_argument("--output_tokens", type=int, default=128 if cuda else 16)
    parser.add_argument("--steps", type=int, default=50 if cuda else 20, help="decode steps measured for each batch")
    parser.add_argument("--max_prefill_tokens", type=int, default=4096 if cuda else 1000)
    parser.add_argument(
        "--huggingface",
        action=argparse.BooleanOptionalAction,
        default=importlib.util.find_spec("transformers") is not None,
        help="compare with transformers; by default where it is installed",
    )
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write which kernels steps consist of")
    return parser.parse_args(argv)


def compare(engine: SteppedEngine) -> tuple[Pace, bool]:
    """What transformers takes, and whether the engine's numbers are its numbers, which is printed."""
    theirs = HuggingFace(engine)
    pace, difference = theirs.pace(), theirs.difference()
    told = f"Largest difference of a log probability from transformers in float32: {difference.ours:.4f}"
    print(f"{told}; of transformers in {engine.options.dtype}: {difference.theirs:.4f}.\n", flush=True)
    return pace, difference.acceptable


def main() -> None:
    """Compare, measure and print, row by row."""
    options = parse()
    if options.device == "cpu":
        torch.set_num_threads(1)  # as the engine process has it on two cores; see engine/process.py
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    print(f"`python -m benchmarks.engine {' '.join(sys.argv[1:])}`, {date.today()}, {hardware}, {options.dtype}, "
          f"Python {platform.python_version()}, torch {torch.__version__}\n")  # fmt: skip
    engine = SteppedEngine(options)
    pace, right = compare(engine) if options.huggingface else (None, True)
    if options.device == "cuda":
        torch.cuda.empty_cache()
    print(table(("", "measured", "limit", "transformers' generate"), ()))
    for row in rows(engine, pace):
        print(f"| {' | '.join(row)} |", flush=True)
    if options.profile is not None:
        write_kernel_times(engine, options.profile)
    sys.exit(0 if right else "error: the engine's log probabilities are not those of the model.")


if __name__ == "__main__":
    main()
