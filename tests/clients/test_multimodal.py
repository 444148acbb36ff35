"""The seed's Python API where no Triton is needed; against the real one it is in tests/e2e."""

from __future__ import annotations

import inspect
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from clients import NemoQueryMultimodalPytorch
from clients.multimodal import QueryRefused, ServerUnavailable, _query_error, triton_address
from clients.rest.errors import ConnectionFailed, MultimodalError, PictureError, TimedOut


@contextmanager
def server(answer: bytes) -> Iterator[str]:
    """Says `answer` to every connection, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def query(url: str, *prompts: str, **arguments: Any) -> Any:
    return NemoQueryMultimodalPytorch(url, "qwen").query_multimodal(prompts or ["Hi"], init_timeout=0.3, **arguments)


def test_the_signature_is_the_seeds() -> None:
    assert list(inspect.signature(NemoQueryMultimodalPytorch).parameters) == ["url", "model_name"]
    parameters = inspect.signature(NemoQueryMultimodalPytorch.query_multimodal).parameters
    assert {name: p.default for name, p in parameters.items() if name not in ("self", "prompts")} == {
        "images": None,
        "max_length": None,
        "max_batch_size": None,
        "top_k": None,
        "top_p": None,
        "temperature": None,
        "random_seed": None,
        "apply_chat_template": None,
        "init_timeout": 60.0,
    }
    assert list(parameters)[1:3] == ["prompts", "images"]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("localhost", ("localhost:8000", False)),
        ("0.0.0.0", ("0.0.0.0:8000", False)),
        ("localhost:9000", ("localhost:9000", False)),
        ("http://host:9000", ("host:9000", False)),
        ("https://host", ("host:8000", True)),
        ("[::1]:9000", ("[::1]:9000", False)),
    ],
)
def test_addresses(url: str, address: tuple[str, bool]) -> None:
    assert triton_address(url) == address


@pytest.mark.parametrize("url", ["grpc://localhost", "", "localhost:port", "localhost:99999", "http://"])
def test_what_is_notriton_address(url: str) -> None:
    with pytest.raises(ConnectionFailed, match="is no address of Triton's HTTP port"):
        query(url)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ConnectionFailed, match=f"^Triton at {url} cannot be reached: Connection refused.$"):
        query(url)


def test_the_line_breaks() -> None:
    with server(b"") as url, pytest.raises(ConnectionFailed, match="hung up before the answer was complete"):
        query(url)


def test_the_model_is_not_there() -> None:
    with (
        server(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as url,
        pytest.raises(TimedOut, match=r"has no model 'qwen' after 0\.3 seconds\.$"),
    ):
        query(url)


@pytest.mark.parametrize(
    ("prompts", "images", "complaint"),
    [
        ([], None, "at least one prompt"),
        ("Hi", None, "must be a list"),
        (["a", "b"], [b"x"], "There are 2 prompts but 1 images"),
    ],
)
def test_lists_that_do_not_fit(prompts: Any, images: Any, complaint: str) -> None:
    with pytest.raises(QueryRefused, match=complaint):
        NemoQueryMultimodalPytorch("localhost", "qwen").query_multimodal(prompts, images)


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        ("nowhere.png", r"^'nowhere\.png' is no picture: neither a file here, nor a URL, nor base64\.$"),
        ("bm90IGEgcGljdHVyZQ==", "is no picture"),
        ("data:image/png;base64,%%", "is no picture"),
        ("%" * 5000, r"^'%{100} \.\.\.' is no picture"),
        (b"not a picture", "not a picture that Pillow can read"),
        (3, "A picture is an image of Pillow's"),
        ("http://127.0.0.1:1/x.png", "cannot be fetched"),
        ("http://[::1/x.png", "cannot be fetched"),
    ],
)
def test_what_is_no_picture(image: Any, complaint: str) -> None:
    with pytest.raises(PictureError, match=complaint):
        query("localhost", images=[image])


@pytest.mark.parametrize(("status", "kind"), [("400", QueryRefused), ("404", QueryRefused), ("503", ServerUnavailable)])
def test_errors_by_status(status: str, kind: type[MultimodalError]) -> None:
    from tritonclient.utils import InferenceServerException

    error = _query_error(InferenceServerException("A sentence.", status=status))
    assert type(error) is kind
    assert str(error) == "A sentence."
    assert error.status == int(status)


def test_neither_torch_nor_a_server_is_imported() -> None:
    code = (
        "import sys, clients; assert 'tritonclient' not in sys.modules; "
        "from clients import NemoQueryMultimodalPytorch; import clients.query_inframework; "
        "print([m for m in ('torch', 'fastapi', 'pytriton', 'jinja2', 'app', 'triton_worker') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
