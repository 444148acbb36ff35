"""Which kernels a step's time goes to: of the engine's decode steps and of a request's way to its first token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.engine_steps import SteppedEngine
from benchmarks.figures import ms, table
from benchmarks.limits import timed

BATCHES = (1, 8, 64)
_ROWS = 25
_STEPS = 10
_NAME = 100


def write_kernel_times(engine: SteppedEngine, path: Path) -> None:
    """Write a table for each kind of step to ``path``; on the CPU, of torch's operators."""
    path.write_text("\n\n".join(_sections(engine)) + "\n", encoding="utf-8")


def _sections(engine: SteppedEngine) -> Iterator[str]:
    for batch in BATCHES:
        if batch <= max(engine.options.batches):
            with engine.decoding(batch):
                seconds = engine.step_seconds()
                steps = lambda: [engine.engine.step() for _ in range(_STEPS)]  # noqa: E731
                yield _section(f"Decode step, batch {batch}: {ms(seconds)}", steps, _STEPS)
    one, other = (engine.request(engine.options.text_tokens, [engine.picture()], 1) for _ in range(2))
    seconds = timed(lambda: engine.answers([one]))
    yield _section(f"One request, a new picture, one token: {ms(seconds)}", lambda: engine.answers([other]), 1)


def _section(title: str, action: Callable[[], object], steps: int) -> str:
    """``action`` does so many ``steps``, and what is told is of one."""
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        timed(action)
    times = [
        (event.self_device_time_total if cuda else event.self_cpu_time_total, event.count, event.key)
        for event in profiled.key_averages()
    ]
    times = sorted((each for each in times if each[0] > 0), reverse=True)
    total = sum(microseconds for microseconds, _, _ in times)
    calls = sum(count for _, count, _ in times)
    rows = (
        (name.replace("|", "/")[:_NAME], f"{count / steps:g}", ms(spent / steps / 1e6), f"{spent / total:.1%}")
        for spent, count, name in times[:_ROWS]
    )
    busy = f"of which {ms(total / steps / 1e6)} in {calls / steps:g} {'kernels and copies' if cuda else 'operators'}"
    return f"{title}, {busy}\n\n{table(('', 'calls', 'together', 'part'), rows)}"
