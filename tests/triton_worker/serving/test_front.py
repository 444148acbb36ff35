"""The front with a recording engine: admission, ends, cancels, leases. The real engine is behind it in tests/e2e."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.messages import (
    Cancel,
    ChatMessage,
    Control,
    DeltaBatch,
    EndDelta,
    ErrorCode,
    FinishReason,
    JsonGrammar,
    LikelyToken,
    OpenSession,
    Outcome,
    PicturePart,
    RegexGrammar,
    SamplingParameters,
    Submit,
    TextPart,
    TokenDelta,
)
from tests.triton_worker.processing.test_processor import png
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.messages import (
    Abort,
    EngineReady,
    FirstToken,
    Generate,
    NewToken,
    StepOutput,
    ToEngine,
    TokenLogprobs,
)
from triton_worker.models.qwen_vl.prompts import prompt_format
from triton_worker.processing.pictures import PictureLimits
from triton_worker.processing.processor import Processor
from triton_worker.serving.front import Front
from triton_worker.serving.session import Session

FIXTURE = Path(__file__).parents[2] / "fixtures" / "nemo2-qwen25vl-tiny"


class Harness:
    """A front, one session, and what the engine was told."""

    def __init__(self, processor: Processor, max_requests: int = 4) -> None:
        self.to_engine: list[ToEngine] = []
        self._executor = ThreadPoolExecutor(1)
        self.processor = processor
        self.front = Front("tiny", processor, self.to_engine.append, self._executor, max_requests)
        self.front.on_engine_message(EngineReady(context_length=128))
        self.session = self.open("s")
        self.said: list[TokenDelta | EndDelta] = []

    def open(self, session_id: str) -> Session:
        session = self.front.open_session(OpenSession(session_id))
        assert isinstance(session, Session)
        return session

    def submit(self, request_id: str, text: str = "hi", **fields: object) -> None:
        message = ChatMessage("user", (TextPart(text),))
        submit = Submit(**{"request_id": request_id, "model": "tiny", "messages": (message,), **fields})  # type: ignore[arg-type]
        assert self.front.control(Control("s", (submit,))).session_known

    async def generate(self, request_id: str, text: str = "hi", **fields: object) -> Generate:
        """Submit, and wait until the engine has it."""
        before = len(self.to_engine)
        self.submit(request_id, text, **fields)
        while len(self.to_engine) == before:
            await asyncio.sleep(0.001)
        generate = self.to_engine[before]
        assert isinstance(generate, Generate)
        return generate

    def tokens(self, engine_id: str, text: str, finish: FinishReason | None = None) -> None:
        """Let the engine say `text`, one token a character."""
        ids = self.processor.tokenizer.encode_template(text, "\ue000")
        for place, token_id in enumerate(ids):
            last = place == len(ids) - 1
            token = NewToken(engine_id, token_id, finish if last else None)
            self.front.on_engine_message(StepOutput((token,)))

    async def end_of(self, request_id: str) -> EndDelta:
        while True:
            for delta in self.said:
                if isinstance(delta, EndDelta) and delta.request_id == request_id:
                    return delta
            batch = await asyncio.wait_for(self.session.next_batch(), 5)
            assert isinstance(batch, DeltaBatch)
            self.said += batch.deltas

    def text_of(self, request_id: str) -> str:
        return "".join(d.text for d in self.said if isinstance(d, TokenDelta) and d.request_id == request_id)


@pytest.fixture(scope="module")
def processor() -> Processor:
    checkpoint = open_checkpoint(FIXTURE)
    return Processor(checkpoint, prompt_format(checkpoint), PictureLimits())


@pytest.fixture
def harness(processor: Processor) -> Harness:
    return Harness(processor)


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


async def test_choices_share_a_request_and_differ_in_their_seed(harness: Harness) -> None:
    sampling = SamplingParameters(n=3, seed=2**63 - 1, stop=("dog",), max_tokens=9)
    await harness.generate("r", sampling=sampling, return_prompt_token_ids=True)
    choices = [m for m in harness.to_engine if isinstance(m, Generate)]
    assert [c.seed for c in choices] == [2**63 - 1, -(2**63), -(2**63) + 1]
    assert len({c.prompt_token_ids for c in choices}) == 1
    first, second, third = (c.request_id for c in choices)
    harness.tokens(second, "two dog")  # ends at its stop string, and frees its place before the others end
    assert harness.to_engine[-1] == Abort(second)
    harness.tokens(first, "one", FinishReason.LENGTH)
    harness.tokens(second, "late", FinishReason.LENGTH)
    harness.tokens(third, "Zürich", FinishReason.STOP)
    end = await harness.end_of("r")
    deltas = [d for d in harness.said if isinstance(d, TokenDelta)]
    texts = ["".join(d.text for d in deltas if d.index == index) for index in range(3)]
    assert texts == ["one", "two ", "Zürich"]
    reasons = {d.index: d.finish_reason for d in deltas if d.finish_reason}
    assert reasons == {0: FinishReason.LENGTH, 1: FinishReason.STOP, 2: FinishReason.STOP}
    assert end.outcome is Outcome.FINISHED
    assert end.usage is not None
    assert end.usage.prompt_tokens == len(choices[0].prompt_token_ids)
    assert end.usage.completion_tokens == sum(len(d.token_ids) for d in deltas)
    assert [d.prompt_token_ids is not None for d in deltas].count(True) == 1
    assert len([d for d in harness.said if isinstance(d, EndDelta)]) == 1
    assert harness.front.idle


@pytest.mark.parametrize("how", ["cancel", "failure"])
async def test_what_ends_one_choice_early_ends_all(harness: Harness, how: str) -> None:
    first = await harness.generate("r", sampling=SamplingParameters(n=2))
    engine_ids = [m.request_id for m in harness.to_engine if isinstance(m, Generate)]
    if how == "cancel":
        harness.front.control(Control("s", (Cancel("r"),)))
    else:
        harness.front.on_engine_message(StepOutput(failed=(first.request_id,)))
    end = await harness.end_of("r")
    assert end.outcome is (Outcome.CANCELLED if how == "cancel" else Outcome.FAILED)
    assert [m for m in harness.to_engine if isinstance(m, Abort)] == [Abort(engine_id) for engine_id in engine_ids]
    assert harness.front.idle


async def test_each_choice_takes_a_place(harness: Harness) -> None:
    async def refusal(request_id: str, n: int) -> tuple[ErrorCode, str | None]:
        harness.submit(request_id, sampling=SamplingParameters(n=n))
        error = (await harness.end_of(request_id)).error
        assert error is not None
        return error.code, error.param

    await harness.generate("three", sampling=SamplingParameters(n=3))
    assert await refusal("two", 2) == (ErrorCode.QUEUE_FULL, None)
    assert await refusal("five", 5) == (ErrorCode.INVALID_REQUEST, "n")
    harness.submit("one")
    assert await refusal("one more", 1) == (ErrorCode.QUEUE_FULL, None)


async def test_a_prompt_alone_is_told_and_never_reaches_the_engine(harness: Harness) -> None:
    shown = {"messages": (ChatMessage("user", (PicturePart(0), TextPart("?"))),), "pictures": (png(56, 56),)}
    harness.submit("r", prompt_only=True, sampling=SamplingParameters(n=4, max_tokens=9999), **shown)
    assert not harness.front.idle
    end = await harness.end_of("r")
    [delta] = [d for d in harness.said if isinstance(d, TokenDelta)]
    assert delta.prompt_token_ids is not None
    assert (delta.token_ids, delta.text, delta.finish_reason) == ((), "", None)
    assert end.outcome is Outcome.FINISHED
    assert end.usage is not None
    assert (end.usage.prompt_tokens, end.usage.image_tokens) == (len(delta.prompt_token_ids), 4)
    assert end.usage.completion_tokens == 0
    assert not [m for m in harness.to_engine if isinstance(m, Generate)]
    assert harness.front.idle
    generate = await harness.generate("the same, answered", **shown)
    assert generate.prompt_token_ids == delta.prompt_token_ids


async def test_log_probabilities_come_with_the_bytes_of_tokens(harness: Harness) -> None:
    generate = await harness.generate("r", sampling=SamplingParameters(logprobs=1))
    token_ids = harness.processor.tokenizer.encode_template("Zürich", "")
    for place, token_id in enumerate(token_ids):
        reason = FinishReason.LENGTH if place == len(token_ids) - 1 else None
        logprobs = TokenLogprobs(-0.5 - place, ((token_ids[0], -0.25),))
        harness.front.on_engine_message(
            StepOutput((NewToken(generate.request_id, token_id, reason, logprobs=logprobs),))
        )
    await harness.end_of("r")
    told = [chosen for d in harness.said if isinstance(d, TokenDelta) for chosen in d.logprobs]
    assert b"".join(chosen.token for chosen in told) == "Zürich".encode()
    assert [(chosen.token_id, chosen.logprob) for chosen in told] == [(t, -0.5 - i) for i, t in enumerate(token_ids)]
    assert all(c.likeliest == (LikelyToken(token_ids[0], told[0].token, -0.25),) for c in told)


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (SamplingParameters(logit_bias={1: 5.0, 99_999: 1.0}), "logit_bias"),
        (SamplingParameters(grammar=RegexGrammar("(a")), "guided_regex"),
        (SamplingParameters(grammar=JsonGrammar("{")), "response_format"),
    ],
)
async def test_parameters_that_this_model_cannot_honour_are_refused(
    harness: Harness, sampling: SamplingParameters, param: str
) -> None:
    harness.submit("r", sampling=sampling)
    error = (await harness.end_of("r")).error
    assert error is not None
    assert (error.code, error.param) == (ErrorCode.INVALID_REQUEST, param)
    assert error.message.endswith(".")


async def test_the_log_names_a_request_as_its_caller_knows_it(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    generate = await harness.generate("r", http_request_id="the-callers-own")
    harness.front.on_engine_message(StepOutput(failed=(generate.request_id,)))
    await harness.end_of("r")
    assert "the-callers-own" in caplog.text
