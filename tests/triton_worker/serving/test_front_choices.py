"""The front: requests of several choices, prompts alone, log probabilities, grammars."""

import pytest

from protocol.messages import (
    Cancel,
    ChatMessage,
    Control,
    EndDelta,
    ErrorCode,
    FinishReason,
    JsonGrammar,
    LikelyToken,
    Outcome,
    PicturePart,
    RegexGrammar,
    SamplingParameters,
    TextPart,
    TokenDelta,
)
from tests.triton_worker.processing.test_processor import png
from tests.triton_worker.serving.conftest import Harness
from triton_worker.engine.messages import (
    Abort,
    Generate,
    NewToken,
    StepOutput,
    TokenLogprobs,
)


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
