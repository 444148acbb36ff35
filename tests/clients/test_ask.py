"""The command ``ask``, as a process, against the real gateway."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.app.conftest import Gateway, picture
from tests.clients.rest_gateway import CannedServer, eventually, gateway_in_thread, http

ROOT = Path(__file__).parents[2]

# Whoever runs the tests in the background may have left Ctrl-C ignored, which processes inherit.
MAIN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from clients.ask import main; main()"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with gateway_in_thread() as gateway:
        yield gateway


def start(url: str, *arguments: str, stdout: Any = subprocess.PIPE, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments],
        cwd=ROOT,
        env={**os.environ, "MULTIMODAL_URL": url, "NO_PROXY": "127.0.0.1", **environment},
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def ask(url: str, *arguments: str, stdin: bytes = b"", **environment: str) -> tuple[int, str, str]:
    process = start(url, *arguments, **environment)
    out, err = process.communicate(stdin, timeout=20)
    return process.returncode, out.decode(), err.decode()


def url_of(gateway: Gateway) -> str:
    return f"http://127.0.0.1:{gateway.port}"


def test_pictures_question_and_sampling(gateway: Gateway, tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.tiff"
    first.write_bytes(picture())
    Image.new("RGB", (8, 6), "blue").save(second)
    flags = [
        "--max_tokens",
        "9",
        "--temperature=0",
        "--top_k",
        "3",
        "--top_p=0.5",
        "--seed",
        "-1",
        "--stop",
        "x",
        "--stop=y",
    ]
    code, out, err = ask(url_of(gateway), str(first), "--url", url_of(gateway), str(second), *flags, "a red circle")
    assert (code, out, err) == (0, "a red circle\n", "")
    submit = gateway.worker.submits[-1]
    assert submit.pictures[0] == picture()
    assert Image.open(io.BytesIO(submit.pictures[1])).format == "PNG"
    sampling = submit.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.top_p) == (9, 0, 3, 0.5)
    assert (sampling.seed, sampling.stop) == (-1, ("x", "y"))


def test_standard_input(gateway: Gateway, tmp_path: Path) -> None:
    assert ask(url_of(gateway), "-", "what is it", stdin=picture())[:2] == (0, "what is it\n")
    assert gateway.worker.submits[-1].pictures == (picture(),)
    assert ask(url_of(gateway), "-", stdin="größer?\n".encode())[:2] == (0, "größer?\n")
    code, _, err = ask(url_of(gateway), "-", "-")
    assert (code, err) == (1, "ask: Only one picture or the question can be read from standard input.\n")


def test_json(gateway: Gateway) -> None:
    code, out, _ = ask(url_of(gateway), "--json", "a red circle")
    answer = json.loads(out)
    assert (code, answer["choices"], out.count("\n")) == (
        0,
        [{"index": 0, "text": "a red circle", "finish_reason": "stop"}],
        1,
    )
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}


def test_question_that_begins_with_a_dash(gateway: Gateway) -> None:
    assert ask(url_of(gateway), "--", "--why?") == (0, "--why?\n", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["fail internal"], "The fault is on our side"),
        (["--json", "fail deadline_exceeded"], "Scripted: deadline_exceeded."),
        (["fail_late internal"], "The fault is on our side"),
        (["--temperature", "3", "hello"], "temperature"),
        (["--model", "another", "hello"], "no such model"),
        (["what is it?", "picture.jpg"], "'what is it?' cannot be read: No such file"),
        (["--url", "localhost:1", "hello"], "http://"),
        (["--retries", "0", "--url", "http://127.0.0.1:1", "hello"], "http://127.0.0.1:1 cannot be reached"),
    ],
)
def test_failures_are_one_line(gateway: Gateway, arguments: list[str], complaint: str) -> None:
    code, out, err = ask(url_of(gateway), *arguments)
    assert code == 1
    assert err.startswith("ask: ")
    assert complaint in err
    assert err.count("\n") == 1
    assert out in ("", "so far\n")


def test_wrong_arguments(gateway: Gateway) -> None:
    code, _, err = ask(url_of(gateway))
    assert (code, "usage: ask [options] [PICTURE ...] QUESTION" in err) == (2, True)


def test_ctrl_c_is_clean_and_cancels(gateway: Gateway) -> None:
    process = start(url_of(gateway), "start_and_hang")
    assert process.stdout is not None
    assert process.stdout.read(6) == b"so far"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, b"")
    request_id = gateway.worker.submits[-1].request_id
    eventually(lambda: request_id in gateway.worker.cancelled)


def test_reader_that_has_read_enough(gateway: Gateway) -> None:
    process = start(url_of(gateway), "flood 20000")
    assert process.stdout is not None
    process.stdout.read(6)
    process.stdout.close()
    assert process.wait(10) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_api_key_comes_from_the_environment() -> None:
    with CannedServer(http("200 OK", "data: [DONE]\n\n")) as server:
        assert ask(server.url, "hello", MULTIMODAL_API_KEY="secret")[:2] == (0, "\n")
    assert b"authorization: bearer secret" in server.requests[0].lower()


def test_answers_cannot_command_the_terminal() -> None:
    delta = {"index": 0, "text": "a\u001b[2Jb 👩\u200d💻\n", "finish_reason": "stop"}
    chunk = json.dumps({"id": "gen-1", "created": 1, "model": "m", "choices": [delta]})
    reader, terminal = pty.openpty()
    with CannedServer(http("200 OK", f"data: {chunk}\n\ndata: [DONE]\n\n")) as server:
        process = start(server.url, "hello", stdout=terminal, PYTHONIOENCODING="utf-8")
        process.communicate(timeout=10)
    os.close(terminal)
    assert os.read(reader, 100).decode() == "a[2Jb 👩\u200d💻\r\n\r\n"
    os.close(reader)
