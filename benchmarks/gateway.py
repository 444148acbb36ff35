"""Measure what gateway and Triton add to the engine, and print one table; with the demo model, on the CPU.

python -m benchmarks.gateway
TEST_WORKER_FLAGS="--device cuda --params_dtype bfloat16" python -m benchmarks.gateway --checkpoint DIRECTORY \
    --streams 1,64 --picture 1036x728 --output_tokens 128

Real servers are started. The same greedy requests go through them as streamed chat completions, and to an engine of the
same settings that this process asks directly, with tokens and decoded pictures, in turns. Each caller asks its next
request when its last one is answered. Then the REST service of NeMo Export-Deploy 0.3.1 is started in front of the same
worker, and both services answer the same short requests, in turns; exits with 1 where that service cannot be had. All
numbers are medians of the rounds. Load generator and servers share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.arguments import numbers, size
from benchmarks.engine_alone import EngineAlone, Tokens
from benchmarks.figures import ms, provenance, table
from benchmarks.load import Answer, callers, streamed
from benchmarks.measured import Loop, first_token, measure, one_token, together, tokens_per_second
from benchmarks.parts import ENGINE, FRONT, GATEWAY, LOAD_GENERATOR, TRITON, Parts
from benchmarks.questions import Question, Questions
from benchmarks.reference_release import ReleaseMissing
from benchmarks.services import CONCURRENT, compare_services, service_rows
from tests.e2e.deployment import DEMO, Deployment, deployed

LEAST_REQUESTS = 16
"""Of a loop, however few streams there are."""


class Bench:
    """The deployment and the engine that it is compared with."""

    def __init__(self, options: argparse.Namespace, deployment: Deployment, engine: EngineAlone) -> None:
        self._options = options
        self._deployment = deployment
        self._parts = Parts(deployment.process.pid)
        self._engine = engine
        self._questions = Questions(options.picture, options.output_tokens)

    async def compare(self, streams: int) -> tuple[list[Loop[Tokens]], list[Loop[Answer]]]:
        """Rounds of the engine alone and of the whole; one of each that is not counted before them."""
        alone, served = [], []
        each = max(self._options.requests, LEAST_REQUESTS // streams)
        for _ in range(self._options.rounds + 1):
            questions = self._questions.of_streams(streams, each)
            alone.append(await self._ask_engine(questions, streams))
            served.append(await self._ask_gateway(questions, streams))
        return alone[1:], served[1:]

    async def _ask_engine(self, questions: Sequence[Question], streams: int) -> Loop[Tokens]:
        prompts = [await self._engine.prepare(question.submit()) for question in questions]
        return await measure([partial(self._engine.ask, prompt) for prompt in prompts], streams)

    async def _ask_gateway(self, questions: Sequence[Question], streams: int) -> Loop[Answer]:
        async with callers(self._deployment.url) as session:
            asks = [partial(streamed, session, question.body()) for question in questions]
            return await measure(asks, streams, self._parts.cpu_seconds)


def rows(streams: int, alone: Sequence[Loop[Any]], served: Sequence[Loop[Any]]) -> Iterator[tuple[str, str, str, str]]:
    """What was measured, of the engine alone, of the whole, and how they compare."""

    def both(value: Callable[[Loop[Any]], float]) -> tuple[float, float]:
        return statistics.median(map(value, alone)), statistics.median(map(value, served))

    name = f"{streams} stream{'s' if streams > 1 else ''}"
    for what, rate in (("requests/s", lambda loop: loop.requests_per_second), ("tokens/s", tokens_per_second)):
        engine, whole = both(rate)
        yield f"{name}: {what}", f"{engine:,.1f}", f"{whole:,.1f}", f"{whole / engine:.0%}"
    for what, seconds in (
        ("first token, all starting together", together),
        ("first token", first_token),
        ("one token", one_token),
    ):
        for percent in (50, 95):
            engine, whole = both(partial(seconds, percent=percent))
            yield f"{name}: {what}, p{percent}", ms(engine), ms(whole), f"{(whole - engine) * 1000:+,.2f} ms"
    for part in (GATEWAY, TRITON, FRONT, ENGINE, LOAD_GENERATOR):
        yield f"{name}: CPU a request, {part}", "", ms(statistics.median(loop.cpu(part) for loop in served)), ""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="benchmarks.gateway", description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=DEMO)
    parser.add_argument("--streams", type=numbers, default=[1, 16, 64, 256], help="with commas between")
    parser.add_argument("--output_tokens", type=int, default=32)
    parser.add_argument("--picture", type=size, metavar="WxH", help="a new one of this size before each text")
    parser.add_argument("--requests", type=int, default=4, help="of each stream in a round, at least 2")
    parser.add_argument("--rounds", type=int, default=5)
    yes_or_no = argparse.BooleanOptionalAction
    parser.add_argument("--engine", action=yes_or_no, default=True, help="compare with the engine alone")
    parser.add_argument("--services", action=yes_or_no, default=True, help="compare with the reference's service")
    return parser.parse_args(argv)


async def compare_engine(options: argparse.Namespace) -> None:
    """Measure the engine alone and the whole, and print."""
    worker_flags = ["--max_num_seqs", str(max(options.streams))]
    with (
        tempfile.TemporaryDirectory() as directory,
        deployed(Path(directory), *worker_flags, checkpoint=options.checkpoint) as deployment,
        EngineAlone(options.checkpoint, *worker_flags) as engine,
    ):
        bench = Bench(options, deployment, engine)
        measured = [row for streams in options.streams for row in rows(streams, *await bench.compare(streams))]
    print(table(("", "engine alone", "gateway + Triton", ""), measured), end="\n\n", flush=True)


async def run(options: argparse.Namespace) -> None:
    """Measure and print.

    Raises:
        ReleaseMissing: the reference's service cannot be had.
    """
    if options.engine:
        await compare_engine(options)
    if options.services:
        theirs, ours = await compare_services(options.rounds)
        head = (f"{CONCURRENT} concurrent requests", "Export-Deploy 0.3.1", "gateway", "ratio")
        print(table(head, service_rows(theirs, ours)))


def main() -> None:
    """Start the servers, measure, print, stop them."""
    options = parse()
    print(provenance("benchmarks.gateway", "torch", "nvidia-pytriton", "uvicorn", "fastapi"), end="\n\n", flush=True)
    try:
        asyncio.run(run(options))
    except ReleaseMissing as missing:
        sys.exit(f"error: the reference's service was not measured: {missing}.")


if __name__ == "__main__":
    main()
