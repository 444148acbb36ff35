"""What the on-call engineer sees at ``/metrics``. Names and buckets follow vLLM's, under our own prefix."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from protocol.messages import Delta, EndDelta, ErrorCode, Outcome, TokenDelta, WorkerStatus

PREFIX = "multimodal:"
_FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
_BETWEEN_TOKENS_BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
)
_REQUEST_BUCKETS = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 240.0)
_REQUEST_PART_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, *_REQUEST_BUCKETS[2:])
_REQUEST_PARTS = {
    "prepare": "Time in which a request's pictures and text were prepared for the engine.",
    "queue": "Time in which a request waited for the engine.",
    "prefill": "From a request's first step to its first token.",
    "decode": "From a request's first token to its last one.",
}
"""Fields of ``Timings``."""
_TOKEN_COUNT_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


Statuses = Callable[[], Mapping[str, WorkerStatus | None]]
"""What each worker said last, by its address."""

_ENGINE_COUNTERS = {
    "num_preemptions": ("preemptions", "Times that a request gave its KV blocks back and started again."),
    "engine_steps": ("steps", "Steps of the engine."),
    "engine_step_seconds": ("step_seconds", "Time spent in steps."),
    "engine_prefill_tokens": ("prefill_tokens", "Prompt tokens computed; those from the prefix cache are not."),
    "engine_decode_tokens": ("decode_tokens", "Tokens sampled."),
    "prefix_cache_queries": ("prefix_queries", "Prompt tokens looked up in the prefix cache."),
    "prefix_cache_hits": ("prefix_hits", "Prompt tokens found in the prefix cache."),
    "mm_cache_queries": ("picture_queries", "Pictures looked up among those encoded before."),
    "mm_cache_hits": ("picture_hits", "Pictures that were encoded before."),
}
"""Names of metrics, and the field of ``EngineCounters`` each shows."""


class Metrics:
    """Counts requests and their tokens as they pass. One object a gateway process."""

    def __init__(self, statuses: Statuses) -> None:
        """``statuses`` is asked when the metrics are read."""
        self.registry = CollectorRegistry()
        """What this process counts."""
        self.shown = self.registry
        """What is read: where several processes share the port, the sum of what all of them count."""
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            self.shown = CollectorRegistry()
            MultiProcessCollector(self.shown)  # type: ignore[no-untyped-call]
        self.shown.register(_WorkerState(statuses))
        self.http_requests = Counter(
            f"{PREFIX}http_requests",
            "HTTP requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.media_fetch_seconds = self._histogram(
            "media_fetch_seconds", "Time that pictures took to be fetched by URL, or to fail.", _REQUEST_BUCKETS
        )
        self.media_fetch_failures = self._counter(
            "media_fetch_failure", "Pictures that could not be fetched by URL, by the reason.", "reason"
        )
        self.key_requests = self._counter("key_requests", "HTTP requests with an API key.", "key_name", "status")
        self.connections_cut = self._counter("connections_cut", "Connections that held a place for nothing.", "reason")
        self.body_bytes = Gauge(
            f"{PREFIX}request_body_bytes",
            "Bytes of request bodies that are held.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, those of pictures included.")
        self._image_tokens = self._counter("image_tokens", "Tokens of pictures in prompts.")
        self._cached_tokens = self._counter("cached_tokens", "Tokens of prompts that were not computed again.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._succeeded = self._counter("request_success", "Requests finished, by the reason.", "finished_reason")
        self._failed = self._counter("request_failure", "Requests that failed, by the error's code.", "code")
        self._cancelled = self._counter("request_cancelled", "Requests whose caller went away.")
        self._retried = self._counter(
            "request_retries", "Requests tried on a second worker, by the first one's code.", "code"
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", _FIRST_TOKEN_BUCKETS
        )
        self._between_tokens = self._histogram(
            "inter_token_latency_seconds",
            "Time between two deltas of a choice, divided by the second one's tokens.",
            _BETWEEN_TOKENS_BUCKETS,
        )
        self._request_seconds = self._histogram(
            "e2e_request_latency_seconds", "From a request's arrival to its end.", _REQUEST_BUCKETS
        )
        self._request_prompt = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", _TOKEN_COUNT_BUCKETS
        )
        self._request_generation = self._histogram(
            "request_generation_tokens", "Tokens generated for a request.", _TOKEN_COUNT_BUCKETS
        )
        self._request_parts = {
            part: self._histogram(f"request_{part}_time_seconds", told, _REQUEST_PART_BUCKETS)
            for part, told in _REQUEST_PARTS.items()
        }

    def retried(self, code: ErrorCode) -> None:
        """A worker had failed with ``code`` before it produced anything, and another one is asked."""
        self._retried.labels(code.value).inc()

    async def measured(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
        """The same deltas, counted. One that is closed before its end counts as cancelled."""
        began = time.monotonic()
        last: dict[int, float] = {}  # by choice
        finish_reason = "stop"
        outcome = Outcome.CANCELLED
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    now = time.monotonic()
                    if isinstance(delta, EndDelta):
                        outcome = delta.outcome
                        self._count_end(delta, finish_reason, now - began)
                    else:
                        self._count_tokens(delta, now, began, last)
                        finish_reason = delta.finish_reason.value if delta.finish_reason else finish_reason
                        last[delta.index] = now
                    yield delta
        finally:
            if outcome is Outcome.CANCELLED:
                self._cancelled.inc()

    def _count_tokens(self, delta: TokenDelta, now: float, began: float, last: Mapping[int, float]) -> None:
        if not last:
            self._first_token.observe(now - began)
        elif delta.token_ids and delta.index in last:
            self._between_tokens.observe((now - last[delta.index]) / len(delta.token_ids))

    def _count_end(self, end: EndDelta, finish_reason: str, seconds: float) -> None:
        if end.error is not None:
            self._failed.labels(end.error.code.value).inc()
        if end.outcome is Outcome.FINISHED:
            self._succeeded.labels(finish_reason).inc()
            self._request_seconds.observe(seconds)
        if end.usage is not None:
            self._prompt_tokens.inc(end.usage.prompt_tokens)
            self._image_tokens.inc(end.usage.image_tokens)
            self._cached_tokens.inc(end.usage.cached_tokens)
            self._generation_tokens.inc(end.usage.completion_tokens)
            self._request_prompt.observe(end.usage.prompt_tokens)
            self._request_generation.observe(end.usage.completion_tokens)
        if end.outcome is Outcome.FINISHED and end.timings is not None:
            for part, histogram in self._request_parts.items():
                histogram.observe(getattr(end.timings, part))

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, told, labels, registry=self.registry)

    def _histogram(self, name: str, told: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, told, buckets=buckets, registry=self.registry)


class _WorkerState(Collector):
    """What each worker said of itself last; nothing but its absence while it cannot be heard."""

    def __init__(self, statuses: Statuses) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        statuses = self._statuses()
        heard = {worker: status for worker, status in statuses.items() if status is not None}
        ready = {worker: status is not None and status.ready for worker, status in statuses.items()}
        yield _gauge("worker_ready", "Whether a generation would succeed.", ready)
        for name, told, value in _WORKER_GAUGES:
            yield _gauge(name, told, {worker: value(status) for worker, status in heard.items()})
        for name, (field, told) in _ENGINE_COUNTERS.items():
            family = CounterMetricFamily(PREFIX + name, told, labels=["worker"])
            for worker, status in heard.items():
                family.add_metric([worker], getattr(status.counters, field))
            yield family


_WORKER_GAUGES: tuple[tuple[str, str, Callable[[WorkerStatus], float]], ...] = (
    ("num_requests_running", "Requests the engine computes.", lambda status: status.running),
    ("num_requests_waiting", "Requests that wait for the engine.", lambda status: status.waiting),
    ("kv_cache_usage_perc", "Part of the KV blocks in use, 0 to 1.", lambda status: status.kv_cache_usage),
)


def _gauge(name: str, told: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(PREFIX + name, told, labels=["worker"])
    for worker, value in values.items():
        family.add_metric([worker], float(value))
    return family
