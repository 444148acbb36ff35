"""The front with a recording engine: admission, ends, cancels, leases. The real engine is behind it in tests/e2e."""

import asyncio
import threading
from pathlib import Path

import pytest

from protocol.messages import (
    Cancel,
    ChatMessage,
    Control,
    Delta,
    EndDelta,
    ErrorCode,
    FinishReason,
    OpenSession,
    Outcome,
    PicturePart,
    SamplingParameters,
    Submit,
    TextPart,
    TokenDelta,
)
from tests.triton_worker.processing.test_processor import png
from tests.triton_worker.serving.conftest import Harness
from triton_worker.engine.messages import (
    Abort,
    EngineReady,
    FirstToken,
    Generate,
    NewToken,
    StepOutput,
)
from triton_worker.processing.processor import Processor
from triton_worker.serving.session import Session

FIXTURE = Path(__file__).parents[2] / "fixtures" / "nemo2-qwen25vl-tiny"


async def test_tokens_become_text_and_one_end(harness: Harness) -> None:
    generate = await harness.generate("r", return_prompt_token_ids=True)
    harness.tokens(generate.request_id, "A fox.", FinishReason.LENGTH)
    end = await harness.end_of("r")
    assert harness.text_of("r") == "A fox."
    assert end.outcome is Outcome.FINISHED
    assert end.usage is not None
    assert end.usage.prompt_tokens == len(generate.prompt_token_ids)
    first = next(d for d in harness.said if isinstance(d, TokenDelta))
    assert first.prompt_token_ids == generate.prompt_token_ids
    assert harness.front.idle
    assert harness.to_engine[-1] == Abort(generate.request_id)


async def test_the_end_tells_where_the_time_went_and_what_was_cached(harness: Harness) -> None:
    generate = await harness.generate("r", cache_salt="tenant")
    assert generate.cache_salt == "tenant"
    first = NewToken(generate.request_id, 5, first=FirstToken(prefill_seconds=0.0, cached_tokens=3))
    harness.front.on_engine_message(StepOutput((first, NewToken(generate.request_id, 5, FinishReason.LENGTH))))
    end = await harness.end_of("r")
    assert end.usage is not None
    assert end.usage.cached_tokens == 3
    assert end.timings is not None
    assert end.timings.prepare > 0
    assert end.timings.queue > 0


async def test_a_stop_string_ends_the_text_before_it_and_frees_the_engine(harness: Harness) -> None:
    generate = await harness.generate("r", sampling=SamplingParameters(stop=("dog",)))
    harness.tokens(generate.request_id, "fox dog fox")
    end = await harness.end_of("r")
    assert harness.text_of("r") == "fox "
    assert end.outcome is Outcome.FINISHED
    assert harness.to_engine[-1] == Abort(generate.request_id)
    reasons = [d.finish_reason for d in harness.said if isinstance(d, TokenDelta) and d.finish_reason]
    assert reasons == [FinishReason.STOP]


async def test_a_cancel_ends_at_once_and_frees_the_engine(harness: Harness) -> None:
    generate = await harness.generate("r")
    harness.front.control(Control("s", (Cancel("r"), Cancel("never heard of"))))
    assert (await harness.end_of("r")).outcome is Outcome.CANCELLED
    assert harness.to_engine[-1] == Abort(generate.request_id)
    harness.tokens(generate.request_id, "late", FinishReason.STOP)
    await asyncio.sleep(0.01)
    assert harness.text_of("r") == ""


async def test_a_cancel_before_the_prompt_is_ready_never_reaches_the_engine(harness: Harness) -> None:
    harness.submit("r")
    harness.front.control(Control("s", (Cancel("r"),)))
    assert (await harness.end_of("r")).outcome is Outcome.CANCELLED
    await asyncio.sleep(0.05)
    assert not [m for m in harness.to_engine if isinstance(m, Generate)]


async def test_a_full_queue_refuses(processor: Processor) -> None:
    harness = Harness(processor, max_requests=1)
    await harness.generate("first")
    harness.submit("second")
    end = await harness.end_of("second")
    assert end.error is not None
    assert end.error.code is ErrorCode.QUEUE_FULL
    harness.front.control(Control("s", (Cancel("first"),)))
    await harness.generate("third")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"model": "gpt"}, ErrorCode.MODEL_NOT_FOUND, "model"),
        ({"text": "word " * 200}, ErrorCode.INVALID_REQUEST, "prompt"),
        ({"sampling": SamplingParameters(max_tokens=128)}, ErrorCode.INVALID_REQUEST, "max_tokens"),
        (
            {"messages": (ChatMessage("user", (PicturePart(0), TextPart("?"))),), "pictures": (b"GIF89a",)},
            ErrorCode.INVALID_PICTURE,
            "image[0]",
        ),
        ({"messages": (ChatMessage("user", (PicturePart(0),)),)}, ErrorCode.INVALID_REQUEST, "image"),
        ({"pictures": (b"not shown",)}, ErrorCode.INVALID_REQUEST, "image"),
    ],
)
async def test_what_cannot_run_fails_with_a_sentence(
    harness: Harness, fields: dict[str, object], code: ErrorCode, param: str
) -> None:
    harness.submit("r", **fields)  # type: ignore[arg-type]
    end = await harness.end_of("r")
    assert end.outcome is Outcome.FAILED
    assert end.error is not None
    assert (end.error.code, end.error.param) == (code, param)
    assert end.error.message.endswith(".")
    assert harness.front.idle


async def test_a_deadline_ends_a_request(harness: Harness) -> None:
    generate = await harness.generate("r", deadline_seconds=0.05)
    end = await harness.end_of("r")
    assert end.error is not None
    assert end.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert harness.to_engine[-1] == Abort(generate.request_id)


async def test_a_lapsed_session_is_closed_with_its_requests(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = await harness.generate("r")
    monkeypatch.setattr(Session, "lapsed", property(lambda self: True))
    closing = asyncio.ensure_future(harness.front.close_lapsed_sessions(0.01))
    assert (await harness.end_of("r")).outcome is Outcome.CANCELLED
    assert await harness.session.next_batch() is None
    assert not harness.front.control(Control("s")).session_known
    assert harness.to_engine[-1] == Abort(generate.request_id)
    closing.cancel()


async def test_a_dead_engine_fails_every_request_and_takes_no_more(harness: Harness) -> None:
    await harness.generate("running")
    harness.front.on_engine_exit()
    harness.submit("late")
    for name in ("running", "late"):
        end = await harness.end_of(name)
        assert end.error is not None
        assert end.error.code is ErrorCode.UNAVAILABLE
    batch = await harness.open("t").next_batch()
    assert batch is not None
    assert batch.status is not None
    assert not batch.status.ready


async def test_the_next_engine_takes_requests_again(harness: Harness) -> None:
    await harness.generate("first")
    harness.front.on_engine_exit()
    harness.front.on_engine_message(EngineReady(context_length=128))
    await harness.generate("second")


async def test_an_engine_that_comes_up_while_the_worker_stops_takes_no_requests(harness: Harness) -> None:
    harness.front.drain()
    harness.front.on_engine_exit()
    harness.front.on_engine_message(EngineReady(context_length=128))
    harness.submit("late")
    end = await harness.end_of("late")
    assert end.error is not None
    assert "shutting down" in end.error.message


async def test_without_triton_every_request_and_stream_ends_and_the_next_ones_are_taken(harness: Harness) -> None:
    generate = await harness.generate("r")
    calls: list[Delta] = []
    message = ChatMessage("user", (TextPart("hi"),))
    harness.front.generate(Submit(request_id="call", model="tiny", messages=(message,)), calls.append)
    harness.front.on_triton_exit()
    assert Abort(generate.request_id) in harness.to_engine
    assert (await harness.end_of("r")).outcome is Outcome.FAILED
    assert await asyncio.wait_for(harness.session.next_batch(), 5) is None
    assert not harness.front.control(Control("s")).session_known
    (end,) = calls
    assert isinstance(end, EndDelta)
    assert end.error is not None
    assert end.error.code is ErrorCode.UNAVAILABLE
    assert harness.front.idle
    harness.session = harness.open("s")
    await harness.generate("r")


async def test_a_request_that_the_engine_cannot_compute_fails_alone(harness: Harness) -> None:
    bad, good = await harness.generate("bad"), await harness.generate("good")
    harness.front.on_engine_message(StepOutput(failed=(bad.request_id, "unknown")))
    harness.tokens(good.request_id, "fine", FinishReason.STOP)
    end = await harness.end_of("bad")
    assert end.error is not None
    assert end.error.code is ErrorCode.INTERNAL
    assert (await harness.end_of("good")).outcome is Outcome.FINISHED


async def test_a_draining_front_finishes_what_runs_and_takes_no_more(harness: Harness) -> None:
    generate = await harness.generate("running")
    harness.front.drain()
    harness.submit("late")
    assert (await harness.end_of("late")).outcome is Outcome.FAILED
    harness.tokens(generate.request_id, "done", FinishReason.STOP)
    assert (await harness.end_of("running")).outcome is Outcome.FINISHED


async def test_pictures_that_would_fill_the_memory_are_refused(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triton_worker.serving.front.MAX_PICTURE_BYTES", 56 * 56 * 3 + 1000)
    shown = {"messages": (ChatMessage("user", (PicturePart(0),)),), "pictures": (png(56, 56),)}
    await harness.generate("first", **shown)
    harness.submit("second", **{**shown, "pictures": (png(56, 56) + b"x" * 1000,)})
    end = await harness.end_of("second")
    assert end.error is not None
    assert end.error.code is ErrorCode.QUEUE_FULL
    await harness.generate("text alone")
    harness.front.control(Control("s", (Cancel("first"),)))
    await harness.generate("third", **shown)


async def test_two_gateways_may_use_the_same_request_id(harness: Harness) -> None:
    other = harness.open("other")
    mine = await harness.generate("r")
    message = ChatMessage("user", (TextPart("other"),))
    harness.front.control(Control("other", (Submit(request_id="r", model="tiny", messages=(message,)),)))
    await asyncio.sleep(0.05)
    theirs = harness.to_engine[-1]
    assert isinstance(theirs, Generate)
    assert theirs.request_id != mine.request_id
    harness.tokens(mine.request_id, "mine", FinishReason.STOP)
    assert (await harness.end_of("r")).outcome is Outcome.FINISHED
    batch = await other.next_batch()
    assert batch is not None
    assert batch.deltas == ()


def test_another_protocol_version_is_refused(harness: Harness) -> None:
    refusal = harness.front.open_session(OpenSession("s", protocol_version=99))
    assert not isinstance(refusal, Session)
    assert "99" in refusal.message


async def test_a_short_prompt_does_not_wait_for_those_that_take_long(harness: Harness) -> None:
    busy = threading.Event()
    harness._executor.submit(busy.wait)
    harness.submit("long", "a b " * 1000, sampling=SamplingParameters(max_tokens=1))
    await harness.generate("short")
    assert len(harness.to_engine) == 1
    busy.set()
    assert (await harness.end_of("long")).outcome is Outcome.FAILED  # more text than the context has room for


async def test_a_session_is_resumed_with_what_it_has_not_said(harness: Harness) -> None:
    generate = await harness.generate("r")
    harness.tokens(generate.request_id, "so far", FinishReason.STOP)
    assert harness.front.open_session(OpenSession("s", resume=True)) is harness.session
    assert (await harness.end_of("r")).outcome is Outcome.FINISHED
    assert harness.text_of("r") == "so far"


def test_a_session_that_is_gone_is_not_resumed(harness: Harness) -> None:
    harness.front.close_session("s")
    refusal = harness.front.open_session(OpenSession("s", resume=True))
    assert not isinstance(refusal, Session)
    assert not harness.front.control(Control("s")).session_known


async def test_the_log_names_a_request_as_its_caller_knows_it(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    generate = await harness.generate("r", http_request_id="the-callers-own")
    harness.front.on_engine_message(StepOutput(failed=(generate.request_id,)))
    await harness.end_of("r")
    assert "the-callers-own" in caplog.text
