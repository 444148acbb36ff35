"""When a Triton that ended or hangs is started again, and when it is given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from triton_worker.serving.restarts import RESTARTS, WINDOW_SECONDS, PartGone
from triton_worker.serving.triton_supervisor import PROBE_FAILURES, PROBE_PERIOD_SECONDS, TritonSupervisor


class ScriptedTriton:
    def __init__(self) -> None:
        self.launched_in: threading.Thread | None = None
        self.may_connect = threading.Event()
        self.failure: Exception | None = None
        self.alive = True
        self.answers = True
        self.probes = 0
        self.killed = False
        self.stopped = threading.Event()

    def launch(self) -> None:
        self.launched_in = threading.current_thread()

    def connect(self) -> None:
        assert self.may_connect.wait(10)
        if self.failure is not None:
            raise self.failure

    def is_alive(self) -> bool:
        return self.alive

    def probe(self, timeout_seconds: float) -> bool:
        self.probes += 1
        return self.answers

    def kill(self) -> None:
        self.killed = True
        self.alive = False

    def stop(self) -> None:
        self.stopped.set()


class Harness:
    def __init__(self) -> None:
        self.now = 1000.0
        self.tritons: list[ScriptedTriton] = []
        self.ends = 0
        self.supervisor = TritonSupervisor(self._make, self._count_end, clock=lambda: self.now)

    def _make(self) -> ScriptedTriton:
        self.tritons.append(ScriptedTriton())
        return self.tritons[-1]

    def _count_end(self) -> None:
        self.ends += 1

    def connect(self, failure: Exception | None = None) -> ScriptedTriton:
        """Let the newest connect, or fail to, and see it."""
        triton = self.tritons[-1]
        triton.failure = failure
        triton.may_connect.set()
        deadline = time.monotonic() + 5
        while not self.supervisor._connecting.done():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        self.supervisor.check()
        return triton

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.supervisor.check()


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    for triton in harness.tritons:
        triton.may_connect.set()


def test_one_that_ended_is_started_again_by_the_thread_that_checks(harness: Harness) -> None:
    assert not harness.supervisor.ready
    first = harness.connect()
    assert harness.supervisor.ready
    first.alive = False
    harness.pass_time(0)
    assert not harness.supervisor.ready
    assert harness.ends == 1
    assert first.stopped.wait(5)
    assert len(harness.tritons) == 1
    harness.pass_time(1.0)
    assert len(harness.tritons) == 2
    assert harness.tritons[1].launched_in is threading.main_thread()
    assert not harness.supervisor.ready
    second = harness.connect()
    assert harness.supervisor.ready
    harness.supervisor.stop()
    assert second.stopped.is_set()


def test_one_that_answers_no_probe_is_killed(harness: Harness) -> None:
    triton = harness.connect()
    triton.answers = False
    for _ in range(PROBE_FAILURES - 1):
        harness.pass_time(PROBE_PERIOD_SECONDS + 1)
        harness.pass_time(1)
    assert harness.ends == 0
    harness.pass_time(PROBE_PERIOD_SECONDS + 1)
    assert (harness.ends, triton.killed) == (1, True)


def test_probes_that_fail_now_and_then_are_no_reason(harness: Harness) -> None:
    triton = harness.connect()
    for probe in range(4 * PROBE_FAILURES):
        triton.answers = probe % PROBE_FAILURES == 0
        harness.pass_time(PROBE_PERIOD_SECONDS + 1)
    assert triton.probes == 4 * PROBE_FAILURES
    assert harness.ends == 0


def test_the_number_of_starts_is_bounded(harness: Harness) -> None:
    for seconds in (1.0, 2.0, 4.0):
        harness.connect().alive = False
        harness.pass_time(0)
        harness.pass_time(seconds - 0.1)
        before = len(harness.tritons)
        harness.pass_time(0.1)
        assert len(harness.tritons) == before + 1
    harness.connect().alive = False
    with pytest.raises(PartGone, match=r"^Triton ended unexpectedly. It has ended 4 times within 5 minutes.$"):
        harness.supervisor.check()


def test_ends_long_ago_do_not_count(harness: Harness) -> None:
    for _ in range(2 * RESTARTS):
        harness.connect().alive = False
        harness.pass_time(0)
        harness.pass_time(1.0)
        harness.now += WINDOW_SECONDS
    assert len(harness.tritons) == 1 + 2 * RESTARTS


def test_one_that_does_not_start_the_second_time_is_tried_again(harness: Harness) -> None:
    harness.connect().alive = False
    harness.pass_time(0)
    harness.pass_time(1.0)
    second = harness.connect(TimeoutError())
    assert second.killed
    harness.pass_time(2.0)
    assert len(harness.tritons) == 3


def test_one_that_never_served_is_given_up(harness: Harness) -> None:
    with pytest.raises(PartGone, match=r"^Triton did not start; its log above says why.$"):
        harness.connect(TimeoutError())
