"""From the reference's tensors to requests, and from their deltas to sentences; the real wire is in tests/e2e."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from protocol.messages import (
    ChatMessage,
    Delta,
    EndDelta,
    ErrorCode,
    Outcome,
    PicturePart,
    RequestError,
    SamplingParameters,
    Submit,
    TextPart,
    TokenDelta,
)
from triton_worker.serving.generation import Generation
from triton_worker.serving.reference_model import CallFailed, ReferenceModel

SPECIAL = frozenset({"<|im_start|>", "<|image_pad|>"})


class ScriptedFront:
    """Records what is asked; the test lets each request say its text."""

    def __init__(self) -> None:
        self.running: dict[str, Generation] = {}
        self.most_at_once = 0
        self.cancelled: list[str] = []

    async def started(self) -> None:
        pass

    def generate(self, submit: Submit, emit: Callable[[Delta], None]) -> Generation:
        prompt = submit.rendered_prompt or ""

        def take(delta: Delta) -> None:
            if isinstance(delta, EndDelta):
                del self.running[prompt]
                if delta.outcome is Outcome.CANCELLED:
                    self.cancelled.append(prompt)
            emit(delta)

        generation = Generation(submit, take)
        self.running[prompt] = generation
        self.most_at_once = max(self.most_at_once, len(self.running))
        asyncio.get_running_loop().call_later(0.01, self._answer, prompt, generation, take)
        return generation

    def _answer(self, prompt: str, generation: Generation, take: Callable[[Delta], None]) -> None:
        if generation.ended:
            return
        if prompt == "fail":
            generation.fail(RequestError(ErrorCode.INVALID_REQUEST, "max_tokens is too much.", "max_tokens"))
        elif prompt != "hang":
            for text in (prompt.upper(), "!"):
                take(TokenDelta(request_id=generation.request_id, text=text))
            generation._end(Outcome.FINISHED)


@pytest.fixture
def front() -> ScriptedFront:
    return ScriptedFront()


@pytest.fixture
def model(front: ScriptedFront) -> ReferenceModel:
    return ReferenceModel(front, "tiny", SPECIAL)  # type: ignore[arg-type]


def read(model: ReferenceModel, *prompts: str, **tensors: Any) -> tuple[list[Submit], int]:
    cells = np.array([[prompt.encode()] for prompt in prompts], dtype=np.object_)
    return model.read({"prompts": cells, **tensors})


def column(*values: Any, dtype: Any = None) -> Any:
    return np.array([[value] for value in values], dtype=dtype)


def test_defaults_are_the_references(model: ReferenceModel) -> None:
    (submit,), at_once = read(model, "Hi")
    assert at_once == 4
    assert submit.sampling == SamplingParameters(max_tokens=50, temperature=0.0, top_k=1, top_p=1.0, seed=None)
    assert submit.deadline_seconds


def test_parameters_of_each_row(model: ReferenceModel) -> None:
    submits, _ = read(
        model,
        "a",
        "b",
        top_k=column(0, 7),
        top_p=column(0.0, 0.9, dtype=np.float32),
        temperature=column(0.7, 1.3, dtype=np.float32),
        random_seed=column(0, -5),
    )
    assert [submit.sampling for submit in submits] == [
        SamplingParameters(max_tokens=50, temperature=0.7, top_k=0, top_p=1.0, seed=0),
        SamplingParameters(max_tokens=50, temperature=1.3, top_k=7, top_p=0.9, seed=-5),
    ]


@pytest.mark.parametrize(
    ("prompt", "said", "rendered"),
    [
        ("What?", None, False),
        ("<|im_start|>user", None, True),
        ("What?", False, True),
        ("<|im_start|>user", True, False),
    ],
)
def test_whether_a_prompt_is_rendered(model: ReferenceModel, prompt: str, said: bool | None, rendered: bool) -> None:
    tensors = {} if said is None else {"apply_chat_template": column(said)}
    (submit,), _ = read(model, prompt, **tensors)
    if rendered:
        assert submit.rendered_prompt == prompt
        assert submit.messages == ()
    else:
        assert submit.rendered_prompt is None
        assert submit.messages == (ChatMessage("user", (TextPart(prompt),)),)


def test_pictures_are_shown_before_the_question(model: ReferenceModel) -> None:
    images = np.array([[b"", base64.encodebytes(b"one"), base64.b64encode(b"two")]], dtype=np.object_)
    (submit,), _ = read(model, "What?", images=images)
    assert submit.pictures == (b"one", b"two")
    assert submit.messages[0].content == (PicturePart(0), PicturePart(1), TextPart("What?"))


def test_a_json_list_of_messages(model: ReferenceModel) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {}}]},
    ]
    (submit,), _ = read(model, json.dumps(messages), images=column(base64.b64encode(b"one"), dtype=np.object_))
    assert submit.messages == (
        ChatMessage("system", (TextPart("Be brief."),)),
        ChatMessage("user", (TextPart("What?"), PicturePart(0))),
    )


@pytest.mark.parametrize("prompt", ["[]", "[1, 2]", '[{"role": "wizard", "content": "x"}]', '{"role": "user"}'])
def test_other_json_is_a_question(model: ReferenceModel, prompt: str) -> None:
    (submit,), _ = read(model, prompt)
    assert submit.messages == (ChatMessage("user", (TextPart(prompt),)),)


def test_a_part_of_an_unknown_type(model: ReferenceModel) -> None:
    with pytest.raises(CallFailed, match="has a part of type 'video'"):
        read(model, '[{"role": "user", "content": [{"type": "video"}]}]')


def rendered(*prompts: str) -> list[Submit]:
    return [Submit(request_id=prompt, model="tiny", rendered_prompt=prompt) for prompt in prompts]


async def test_answers_come_in_order(model: ReferenceModel) -> None:
    assert await model.answer(rendered("a", "b", "c"), 4) == ["A!", "B!", "C!"]


@pytest.mark.parametrize("at_once", [1, 2])
async def test_max_batch_size_bounds_what_runs_at_once(
    model: ReferenceModel, front: ScriptedFront, at_once: int
) -> None:
    await model.answer(rendered("a", "b", "c", "d"), at_once)
    assert front.most_at_once == at_once


async def test_a_failure_ends_the_call_and_its_other_rows(model: ReferenceModel, front: ScriptedFront) -> None:
    with pytest.raises(CallFailed, match=r"^max_length is too much\.$") as caught:
        await model.answer(rendered("hang", "fail"), 4)
    assert caught.value.error.code is ErrorCode.INVALID_REQUEST
    await asyncio.sleep(0)
    assert front.cancelled == ["hang"]
    assert front.running == {}
