import pytest

from triton_worker.engine.messages import FirstToken
from triton_worker.serving import request_times
from triton_worker.serving.request_times import RequestTimes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(request_times.time, "monotonic", lambda: now[0])
    return now


def test_the_parts_add_up_to_the_whole(clock: list[float]) -> None:
    times = RequestTimes()
    clock[0] = 101.0
    times.prepared()
    clock[0] = 108.0
    times.first_token(FirstToken(prefill_seconds=4.0, cached_tokens=32))
    clock[0] = 110.5
    timings = times.timings()
    assert timings is not None
    assert (timings.prepare, timings.queue, timings.prefill, timings.decode) == (1.0, 3.0, 4.0, 2.5)
    assert times.cached_tokens == 32


def test_a_request_that_ended_in_the_queue_only_waited(clock: list[float]) -> None:
    times = RequestTimes()
    assert times.timings() is None
    clock[0] = 101.0
    times.prepared()
    clock[0] = 105.0
    timings = times.timings()
    assert timings is not None
    assert (timings.prepare, timings.queue, timings.prefill, timings.decode) == (1.0, 4.0, 0.0, 0.0)
