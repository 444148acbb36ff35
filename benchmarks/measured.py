"""A closed loop of requests, and what it cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from benchmarks.figures import percentile
from benchmarks.load import closed_loop

Result = TypeVar("Result", covariant=True)


class Timing(Protocol):
    """When the tokens of one request came."""

    began: float
    completion_tokens: int

    @property
    def first_seconds(self) -> float:
        """Time to first token."""

    @property
    def token_seconds(self) -> float:
        """Mean time between two tokens."""


@dataclass(frozen=True)
class Loop(Generic[Result]):
    """So many callers, each with one request in flight, until all requests are answered."""

    in_flight: int
    seconds: float
    results: Sequence[Result]
    cpu_seconds: Mapping[str, float]
    """Of all requests together, by part."""

    @property
    def requests_per_second(self) -> float:
        """Answered requests."""
        return len(self.results) / self.seconds

    def cpu(self, part: str) -> float:
        """CPU seconds a request."""
        return self.cpu_seconds[part] / len(self.results)


async def measure(
    asks: Sequence[Callable[[], Awaitable[Result]]],
    in_flight: int,
    cpu_seconds: Callable[[], Mapping[str, float]] = dict,
) -> Loop[Result]:
    """Run the loop once."""
    before = cpu_seconds()
    results, seconds = await closed_loop(asks, in_flight)
    after = cpu_seconds()
    return Loop(in_flight, seconds, results, {part: after[part] - before[part] for part in after})


def tokens_per_second(loop: Loop[Timing]) -> float:
    """Generated tokens of all requests."""
    return sum(timing.completion_tokens for timing in loop.results) / loop.seconds


def together(loop: Loop[Timing], percent: float) -> float:
    """A percentile of the seconds to the first token, of the first request of each caller: they start together."""
    return percentile([timing.first_seconds for timing in _in_order(loop)[: loop.in_flight]], percent)


def first_token(loop: Loop[Timing], percent: float) -> float:
    """The same of the others, each of which starts when one before it is answered."""
    return percentile([timing.first_seconds for timing in _in_order(loop)[loop.in_flight :]], percent)


def one_token(loop: Loop[Timing], percent: float) -> float:
    """A percentile of the seconds between two tokens of a request, which are a mean over the request."""
    return percentile([timing.token_seconds for timing in loop.results], percent)


def _in_order(loop: Loop[Timing]) -> Sequence[Timing]:
    return sorted(loop.results, key=lambda timing: timing.began)
