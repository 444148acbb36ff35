import msgspec
import numpy as np
import pytest

from protocol import wire
from protocol.messages import (
    Cancel,
    ChatMessage,
    Control,
    ControlReply,
    DeltaBatch,
    EndDelta,
    ErrorCode,
    FinishReason,
    OpenSession,
    Outcome,
    PicturePart,
    RequestError,
    SamplingParameters,
    Submit,
    TextPart,
    TokenDelta,
    Usage,
    WorkerStatus,
)

SUBMIT = Submit(
    request_id="r-1",
    model="demo",
    messages=(ChatMessage("user", (PicturePart(0), TextPart("What is in this image? 🟥"))),),
    pictures=(bytes(range(256)),),
    sampling=SamplingParameters(temperature=0.0, stop=("\n", "###"), seed=-(2**63), max_tokens=7),
    deadline_seconds=12.5,
)


@pytest.mark.parametrize(
    "message",
    [
        OpenSession("s-1"),
        Control("s-1"),
        Control("s-1", (SUBMIT, Cancel("r-0"))),
        ControlReply("s-1", session_known=True),
        DeltaBatch(status=WorkerStatus(ready=True, model="demo", context_length=4096)),
        DeltaBatch(
            (
                TokenDelta(request_id="r-1", text="é", token_ids=(1, 2), finish_reason=FinishReason.LENGTH),
                EndDelta(request_id="r-1", outcome=Outcome.FINISHED, usage=Usage(10, 4, 2)),
                EndDelta(
                    request_id="r-2", outcome=Outcome.FAILED, error=RequestError(ErrorCode.QUEUE_FULL, "Full.", None)
                ),
            )
        ),
    ],
)
def test_messages_survive_the_tensor(message: msgspec.Struct) -> None:
    tensor = wire.to_tensor(message)
    assert tensor.dtype == np.uint8
    assert tensor.ndim == 1
    assert wire.from_tensor(tensor, type(message)) == message


def test_a_tensor_that_is_not_contiguous_is_read() -> None:
    tensor = wire.to_tensor(OpenSession("s-1"))
    assert wire.from_tensor(np.repeat(tensor, 2)[::2], OpenSession) == OpenSession("s-1")


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", wire.encode(OpenSession("s"))[:-1]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(wire.MessageError, match="OpenSession"):
        wire.decode(data, OpenSession)


def test_another_dtype_is_refused() -> None:
    with pytest.raises(wire.MessageError, match="uint8"):
        wire.from_tensor(np.zeros(3, dtype=np.float32), OpenSession)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("inf")),
        ("temperature", "0"),
        ("top_p", 1.5),
        ("top_p", -0.5),
        ("top_k", -1),
        ("max_tokens", 0),
        ("seed", 2**63),
        ("stop", ("",)),
        ("stop", tuple("abcdefghijklmnopqrs")),
        ("beam_width", 3),
    ],
)
def test_sampling_parameters_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(wire.MessageError):
        wire.decode(msgspec.msgpack.encode({field: value}), SamplingParameters)


def test_a_nan_temperature_is_refused() -> None:
    with pytest.raises(wire.MessageError):
        wire.decode(msgspec.msgpack.encode({"temperature": float("nan")}), SamplingParameters)


def test_an_unknown_role_is_refused() -> None:
    message = msgspec.to_builtins(ChatMessage("user", (TextPart("hi"),)))
    with pytest.raises(wire.MessageError):
        wire.decode(msgspec.msgpack.encode({**message, "role": "tool"}), ChatMessage)
