import pytest

from protocol import wire
from protocol.messages import ChatMessage, Submit, TextPart

MESSAGES = (ChatMessage("user", (TextPart("Hi"),)),)


def test_a_rendered_prompt_takes_the_place_of_messages() -> None:
    submit = Submit(request_id="r", model="m", rendered_prompt="<|im_start|>user")
    assert wire.decode(wire.encode(submit), Submit) == submit


def test_both_or_neither_are_refused() -> None:
    whole = wire.encode(Submit(request_id="r", model="m", messages=MESSAGES))
    for fields in ({"messages": MESSAGES, "rendered_prompt": ""}, {}):
        with pytest.raises(ValueError, match="either messages or rendered_prompt"):
            Submit(request_id="r", model="m", **fields)  # type: ignore[arg-type]
    with pytest.raises(wire.MessageError, match="either messages or rendered_prompt"):
        wire.decode(whole.replace(b"messages", b"massages"), Submit)
