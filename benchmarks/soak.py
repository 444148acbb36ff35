"""Load a deployment with streams whose answers are known, let callers vanish, and tell what did not hold.

python -m benchmarks.soak --streams 256 --seconds 60

Real servers are started, with the demo model. Each of many requests is asked alone first. Then so many callers ask them
in a crowd, and each stream must say what it said alone: a delta that was lost, doubled or another's would show. One in
five callers hangs up at a moment of its own. In the end all hang up at once; the worker must be empty soon after, its
memory as it was, and its log without errors. Exits with 1 and a sentence for each property that failed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.conversations import conversations
from benchmarks.figures import mib, percentile, provenance, table
from benchmarks.load import Answer, Unanswered, callers, streamed
from benchmarks.parts import Parts
from tests.e2e.deployment import DEMO, Deployment, deployed

VANISHING = 0.2
"""Part of the callers who hang up, if they are not answered sooner."""
EMPTY_SECONDS = 20.0
"""The worker is empty so long after the last caller went, at most."""
GROWTH_BYTES = 16 * 2**20
"""Memory may grow so much between the second and the last third: caches and allocators reach their size before. A slow
leak shows in a longer run."""
SAMPLE_SECONDS = 0.5
MOST_SHOWN = 5
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")

Said = tuple[str, str | None, int, int]


@dataclass
class Findings:
    """What a soak saw, and what it should not have seen."""

    failures: list[str] = field(default_factory=list)
    answered: int = 0
    vanished: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_seconds: list[float] = field(default_factory=list)
    memory: list[Mapping[str, int]] = field(default_factory=list)
    """Resident bytes by part, sample by sample."""
    empty_seconds: float | None = None

    def memory_of(self, part: str) -> list[float]:
        """Medians of a part's memory in each third."""
        third = max(1, len(self.memory) // 3)
        thirds = self.memory[:third], self.memory[third:-third] or self.memory, self.memory[-third:]
        return [statistics.median(sample[part] for sample in samples) for samples in thirds]


class Soak:
    """One run against one deployment."""

    def __init__(self, deployment: Deployment, streams: int, seconds: float, conversations: Sequence[Any]) -> None:
        self._deployment = deployment
        self._streams = streams
        self._seconds = seconds
        self._conversations = conversations
        self._alone: list[Said] = []
        self._random = random.Random(1)
        self._over = False
        self.findings = Findings()

    async def run(self) -> Findings:
        """Ask alone, ask in a crowd, look at what is left."""
        log_begins = len(self._deployment.log)
        async with callers(self._deployment.url) as session:
            for body in self._conversations:
                self._alone.append(_said(await streamed(session, body)))
            await self._crowd(session)
            await self._expect_empty(session)
            await self._again(session)
        self._expect_flat_memory()
        self._expect_quiet_log(self._deployment.log[log_begins:])
        return self.findings

    async def _crowd(self, session: aiohttp.ClientSession) -> None:
        began = time.monotonic()
        tasks = [asyncio.create_task(self._caller(session)) for _ in range(self._streams)]
        parts = Parts(self._deployment.process.pid)
        samples = [parts.memory_bytes()]
        while time.monotonic() < began + self._seconds:
            await asyncio.sleep(SAMPLE_SECONDS)
            samples.append(parts.memory_bytes())
        self.findings.memory = samples[len(samples) // 10 :]  # what is needed once is there by then
        self.findings.seconds = time.monotonic() - began
        self._over = True
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _caller(self, session: aiohttp.ClientSession) -> None:
        while not self._over:  # before Python 3.12, wait_for may swallow that it was cancelled
            number = self._random.randrange(len(self._conversations))
            patience = self._random.uniform(0.0, 1.0) if self._random.random() < VANISHING else None
            try:
                answer = await asyncio.wait_for(streamed(session, self._conversations[number]), patience)
            except asyncio.TimeoutError:
                self.findings.vanished += 1
            except Unanswered as error:
                self._fail(f"request {number} was not answered: {error}")
                await asyncio.sleep(0.1)
            else:
                self._compare(number, answer)

    def _compare(self, number: int, answer: Answer) -> None:
        self.findings.answered += 1
        self.findings.tokens += answer.completion_tokens
        self.findings.first_seconds.append(answer.first_seconds)
        said, alone = _said(answer), self._alone[number]
        if said != alone:
            others = [other for other, text in enumerate(self._alone) if text == said]
            foreign = f", which is the answer to request {others[0]}" if others else ""
            self._fail(f"request {number} said {said} in the crowd{foreign}, and alone {alone}")

    async def _expect_empty(self, session: aiohttp.ClientSession) -> None:
        began = time.monotonic()
        while any((left := await _gauges(session)).values()):
            if time.monotonic() > began + EMPTY_SECONDS:
                self._fail(f"{EMPTY_SECONDS:g} s after all callers went the worker still has {left}")
                return
            await asyncio.sleep(0.1)
        self.findings.empty_seconds = time.monotonic() - began

    async def _again(self, session: aiohttp.ClientSession) -> None:
        """It serves as before."""
        try:
            answer = await streamed(session, self._conversations[0])
        except Unanswered as error:
            self._fail(f"request 0 was not answered after the crowd: {error}")
        else:
            if _said(answer) != self._alone[0]:
                self._fail("request 0 has another answer after the crowd than before it")

    def _expect_flat_memory(self) -> None:
        for part in self.findings.memory[0]:
            _, second, last = self.findings.memory_of(part)
            if last - second > GROWTH_BYTES:
                self._fail(f"memory of {part} grew from {mib(second)} in the second third to {mib(last)} in the last")

    def _expect_quiet_log(self, log: str) -> None:
        for line in log.splitlines():
            if re.search(r'Traceback|"level": "(error|critical)"| (ERROR|CRITICAL) ', line):
                self._fail(f"the log has the line: {line[:300]}")

    def _fail(self, sentence: str) -> None:
        self.findings.failures.append(sentence)


def _said(answer: Answer) -> Said:
    return answer.text, answer.finish_reason, answer.completion_tokens, answer.roles


async def _gauges(session: aiohttp.ClientSession) -> dict[str, float]:
    async with session.get("/metrics") as response:
        text = await response.text()
    found = re.findall(r"^multimodal:(\w+)(?:{.*})? (\S+)$", text, flags=re.MULTILINE)
    return {gauge: sum(float(value) for name, value in found if name == gauge) for gauge in GAUGES}


def rows(findings: Findings) -> list[tuple[str, str]]:
    """What a soak saw."""
    shown: list[tuple[str, str]] = [
        ("answers, each compared with the one given alone", f"{findings.answered:,}"),
        ("callers who hung up", f"{findings.vanished:,}"),
        ("tokens/s of whole answers", f"{findings.tokens / findings.seconds:,.0f}"),
    ]
    if findings.first_seconds:
        p50, p95 = (percentile(findings.first_seconds, percent) for percent in (50, 95))
        shown.append(("first token, p50 / p95", f"{p50:.2f} s / {p95:.2f} s"))
    for part in findings.memory[0]:
        shown.append((f"memory of {part}, each third", " / ".join(map(mib, findings.memory_of(part)))))
    if findings.empty_seconds is not None:
        shown.append(("worker empty after the last caller went", f"{findings.empty_seconds:.1f} s"))
    return [*shown, ("properties that did not hold", str(len(findings.failures)))]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=DEMO)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--conversations", type=int, default=64, help="different requests")
    return parser.parse_args(argv)


def main() -> int:
    """Start the servers, load them, print; the exit code."""
    options = parse()
    print(provenance("benchmarks.soak", "torch", "nvidia-pytriton", "uvicorn", "fastapi"), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        flags = ["--max_queued_requests", str(2 * options.streams)]  # a caller who went holds a place a moment longer
        with deployed(Path(directory), *flags, checkpoint=options.checkpoint) as deployment:
            soak = Soak(deployment, options.streams, options.seconds, conversations(options.conversations))
            try:
                findings = asyncio.run(soak.run())
            except Unanswered as error:
                print(f"error: a request was not answered even alone: {error}")
                return 1
    print(table(("", ""), rows(findings)))
    for sentence in findings.failures[:MOST_SHOWN]:
        print(f"error: {sentence}.")
    if len(findings.failures) > MOST_SHOWN:
        print(f"error: and {len(findings.failures) - MOST_SHOWN} more.")
    return 1 if findings.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
