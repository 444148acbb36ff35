"""``query_inframework --stream``: one answer as it is generated, over Triton's gRPC port."""

from __future__ import annotations

import re
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from clients import query_inframework
from clients.triton_stream import stream_answer
from protocol.messages import ChatMessage, SamplingParameters, Submit, TextPart
from tests.e2e.deployment import FIXTURE, MODEL, Deployment, picture
from tests.e2e.reference_wire import ask

QUESTION = "What is this?"
TOKENIZER = str(FIXTURE / "context" / "nemo_tokenizer")


def query(tiny: Deployment, *flags: str) -> None:
    query_inframework.main(
        ["-u", "127.0.0.1", "-mn", MODEL, "--stream", "--triton_grpc_port", str(tiny.ports["grpc"]), *flags]
    )


@pytest.mark.parametrize("processor", [[], ["-pn", TOKENIZER]])
def test_the_pieces_are_the_whole_answer(
    tiny: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str], processor: list[str]
) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(picture())
    query(tiny, "-p", QUESTION, "-i", str(path), "-mol", "12", *processor)
    assert capsys.readouterr().out == ask(tiny, QUESTION, picture(), max_length=12) + "\n"


def submit(max_tokens: int) -> Submit:
    message = ChatMessage("user", (TextPart("Go on."),))
    sampling = SamplingParameters(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return Submit(request_id="r", model=MODEL, messages=(message,), sampling=sampling)


def test_the_text_comes_in_pieces(tiny: Deployment) -> None:
    pieces = list(stream_answer(f"127.0.0.1:{tiny.ports['grpc']}", submit(200), 10.0))
    assert len(pieces) > 2


def test_an_abandoned_stream_is_cancelled(tiny: Deployment) -> None:
    with closing(stream_answer(f"127.0.0.1:{tiny.ports['grpc']}", submit(400), 10.0)) as pieces:
        next(pieces)
    deadline = time.monotonic() + 10
    while not re.search(r"^multimodal:num_requests_running\S* 0\.0$", httpx.get(f"{tiny.url}/metrics").text, re.M):
        assert time.monotonic() < deadline, "the request goes on"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-t", "-3"], "error: temperature is out of its range."),
        (["--triton_grpc_port", "1", "-it", "0.5"], "gRPC port at 127.0.0.1:1 cannot be reached"),
        (["-mn", "other"], "error: There is no model 'other'; this is 'tiny'."),
        (["-i", "nowhere.png"], "error: 'nowhere.png' is no picture"),
    ],
)
def test_a_stream_that_fails_says_why(tiny: Deployment, flags: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit) as exited:
        query(tiny, "-p", "Hi", *flags)
    assert sentence in str(exited.value)
