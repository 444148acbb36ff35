"""When an engine that ended is started again, and when it is given up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from triton_worker.engine.messages import EngineFailed, EngineReady, FromEngine, Shutdown, ToEngine
from triton_worker.serving.engine_supervisor import EngineSupervisor
from triton_worker.serving.restarts import RESTARTS, WINDOW_SECONDS, PartGone


class ScriptedEngine:
    def __init__(self, on_message: Callable[[FromEngine], None], on_exit: Callable[[], None]) -> None:
        self.say, self.end = on_message, on_exit
        self.received: list[ToEngine] = []
        self.killed = False

    def send(self, message: ToEngine) -> None:
        self.received.append(message)

    def stop(self) -> None:
        self.end()

    def kill(self) -> None:
        self.killed = True
        self.end()


class Harness:
    def __init__(self, restarts: int = RESTARTS) -> None:
        self.now = 1000.0
        self.engines: list[ScriptedEngine] = []
        self.ends = 0
        self.supervisor = EngineSupervisor(
            self._start, lambda message: None, self._count_end, restarts=restarts, clock=lambda: self.now
        )

    def _start(self, on_message: Callable[[FromEngine], None], on_exit: Callable[[], None]) -> ScriptedEngine:
        self.engines.append(ScriptedEngine(on_message, on_exit))
        return self.engines[-1]

    def _count_end(self) -> None:
        self.ends += 1

    def serve_and_end(self) -> None:
        self.engines[-1].say(EngineReady(128))
        self.engines[-1].end()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.supervisor.check()


@pytest.fixture
def harness() -> Harness:
    return Harness()


def test_an_engine_that_served_is_started_again_after_a_while(harness: Harness) -> None:
    assert not harness.supervisor.ready
    harness.engines[0].say(EngineReady(128))
    assert harness.supervisor.ready
    harness.engines[0].end()
    assert not harness.supervisor.ready
    assert harness.ends == 1
    harness.pass_time(0)
    assert len(harness.engines) == 1
    harness.pass_time(1.0)
    assert len(harness.engines) == 2
    assert not harness.supervisor.ready
    harness.engines[1].say(EngineReady(128))
    assert harness.supervisor.ready
    harness.supervisor.send(Shutdown())
    assert [engine.received for engine in harness.engines] == [[], [Shutdown()]]


def test_the_pause_grows_and_the_number_of_starts_is_bounded(harness: Harness) -> None:
    for seconds in (1.0, 2.0, 4.0):
        harness.serve_and_end()
        harness.pass_time(0)
        harness.pass_time(seconds - 0.1)
        before = len(harness.engines)
        harness.pass_time(0.1)
        assert len(harness.engines) == before + 1
    harness.serve_and_end()
    with pytest.raises(PartGone, match=r"ended unexpectedly. It has ended 4 times within 5 minutes"):
        harness.supervisor.check()


def test_ends_long_ago_do_not_count(harness: Harness) -> None:
    for _ in range(3 * RESTARTS):
        harness.serve_and_end()
        harness.pass_time(0)
        harness.pass_time(1.0)
        harness.now += WINDOW_SECONDS
    assert len(harness.engines) == 1 + 3 * RESTARTS


def test_one_that_dies_again_while_it_starts_counts_too(harness: Harness) -> None:
    harness.serve_and_end()
    for _ in range(RESTARTS):
        harness.pass_time(0)
        harness.pass_time(60.0)
        harness.engines[-1].end()
    with pytest.raises(PartGone):
        harness.supervisor.check()


def test_one_that_never_served_is_given_up_with_its_first_reason(harness: Harness) -> None:
    harness.engines[0].say(EngineFailed("The shard is missing."))
    harness.engines[0].say(EngineFailed("Another rank ended."))
    harness.engines[0].end()
    with pytest.raises(PartGone, match=r"^The shard is missing.$"):
        harness.supervisor.check()


def test_without_restarts_the_reason_is_told_as_it_is() -> None:
    harness = Harness(restarts=0)
    harness.serve_and_end()
    with pytest.raises(PartGone, match=r"^The engine process ended unexpectedly.$"):
        harness.supervisor.check()


@pytest.mark.parametrize("ready", [True, False])
def test_one_that_does_not_listen_yet_is_ended_by_force(harness: Harness, ready: bool) -> None:
    if ready:
        harness.engines[0].say(EngineReady(128))
    harness.supervisor.stop()
    assert harness.ends == 1
    assert harness.engines[0].killed is not ready
