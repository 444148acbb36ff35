"""Measure what gateway and Triton add to the engine, and print one table; with the demo model, on the CPU.

python -m benchmarks.gateway
TEST_WORKER_FLAGS="--device cuda --params_dtype bfloat16" python -m benchmarks.gateway --checkpoint DIRECTORY

Real servers are started. The same greedy requests go through them as streamed chat completions, and to an engine of the
same settings that this process asks directly, in turns. Then the REST service of NeMo Export-Deploy 0.3.1 is started in
front of the same worker, and both services answer the same short requests, in turns. All numbers are medians of the
rounds. Load generator and servers share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.engine_alone import EngineAlone, Tokens
from benchmarks.figures import ms, provenance, table
from benchmarks.load import Answer, callers, streamed
from benchmarks.measured import Loop, first_token, measure, one_token, tokens_per_second
from benchmarks.parts import ENGINE, FRONT, GATEWAY, LOAD_GENERATOR, TRITON, Parts
from benchmarks.reference_release import ReleaseMissing
from benchmarks.services import CONCURRENT, compare_services, service_rows
from protocol.messages import ChatMessage, SamplingParameters, Submit, TextPart
from tests.e2e.deployment import DEMO, MODEL, Deployment, deployed


class Bench:
    """The deployment and the engine that it is compared with."""

    def __init__(self, options: argparse.Namespace, deployment: Deployment, engine: EngineAlone) -> None:
        self._options = options
        self._deployment = deployment
        self._parts = Parts(deployment.process.pid)
        self._engine = engine
        self._numbers = itertools.count()

    async def compare(self, streams: int) -> tuple[list[Loop[Tokens]], list[Loop[Answer]]]:
        """Rounds of the engine alone and of the whole; one of each that is not counted before them."""
        alone, served = [], []
        async with callers(self._deployment.url) as session:
            for _ in range(self._options.rounds + 1):
                prompts = [await self._engine.prepare(self._submit(text)) for text in self._texts(streams)]
                alone.append(await measure([partial(self._engine.ask, prompt) for prompt in prompts], streams))
                bodies = [self._body(text) for text in self._texts(streams)]
                asks = [partial(streamed, session, body) for body in bodies]
                served.append(await measure(asks, streams, self._parts.cpu_seconds))
        return alone[1:], served[1:]

    def _texts(self, streams: int) -> list[str]:
        """No two alike, so that no cache of prompts answers."""
        requests = streams * max(2, 16 // streams)
        return [f"{next(self._numbers)} is a number. What else can be said of it?" for _ in range(requests)]

    def _body(self, text: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        length = self._options.output_tokens
        return {"model": MODEL, "messages": messages, "max_tokens": length, "temperature": 0, "ignore_eos": True}

    def _submit(self, text: str) -> Submit:
        sampling = SamplingParameters(max_tokens=self._options.output_tokens, temperature=0.0, ignore_eos=True)
        return Submit(
            request_id="-", model=MODEL, messages=(ChatMessage("user", (TextPart(text),)),), sampling=sampling
        )


def rows(streams: int, alone: Sequence[Loop[Any]], served: Sequence[Loop[Any]]) -> Iterator[tuple[str, str, str, str]]:
    """What was measured, of the engine alone, of the whole, and how they compare."""

    def both(value: Callable[[Loop[Any]], float]) -> tuple[float, float]:
        return statistics.median(map(value, alone)), statistics.median(map(value, served))

    name = f"{streams} stream{'s' if streams > 1 else ''}"
    for what, rate in (("requests/s", lambda loop: loop.requests_per_second), ("tokens/s", tokens_per_second)):
        engine, whole = both(rate)
        yield f"{name}: {what}", f"{engine:,.1f}", f"{whole:,.1f}", f"{whole / engine:.0%}"
    for what, seconds in (("first token", first_token), ("one token", one_token)):
        for percent in (50, 95):
            engine, whole = both(partial(seconds, percent=percent))
            yield f"{name}: {what}, p{percent}", ms(engine), ms(whole), f"{(whole - engine) * 1000:+,.2f} ms"
    for part in (GATEWAY, TRITON, FRONT, ENGINE, LOAD_GENERATOR):
        yield f"{name}: CPU a request, {part}", "", ms(statistics.median(loop.cpu(part) for loop in served)), ""


def numbers(text: str) -> list[int]:
    """A list with commas, on the command line."""
    return [int(number) for number in text.split(",")]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="benchmarks.gateway", description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=DEMO)
    parser.add_argument("--streams", type=numbers, default=[1, 16, 64, 256], help="with commas between")
    parser.add_argument("--output_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--services", action=argparse.BooleanOptionalAction, default=True, help="compare with the reference's service"
    )
    return parser.parse_args(argv)


async def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    worker_flags = ["--max_num_seqs", str(max(options.streams))]
    with (
        tempfile.TemporaryDirectory() as directory,
        deployed(Path(directory), *worker_flags, checkpoint=options.checkpoint) as deployment,
        EngineAlone(options.checkpoint, *worker_flags) as engine,
    ):
        bench = Bench(options, deployment, engine)
        measured = [row for streams in options.streams for row in rows(streams, *await bench.compare(streams))]
    print(table(("", "engine alone", "gateway + Triton", ""), measured), end="\n\n", flush=True)
    if not options.services:
        return
    try:
        theirs, ours = await compare_services(options.rounds)
    except ReleaseMissing as missing:
        print(f"The reference's service was not measured: {missing}.")
    else:
        head = (f"{CONCURRENT} concurrent requests", "Export-Deploy 0.3.1", "gateway", "ratio")
        print(table(head, service_rows(theirs, ours)))


def main() -> None:
    """Start the servers, measure, print, stop them."""
    options = parse()
    print(provenance("benchmarks.gateway", "torch", "nvidia-pytriton", "uvicorn", "fastapi"), end="\n\n", flush=True)
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
