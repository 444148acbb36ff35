"""``NemoQueryMultimodalPytorch``: the Python API of NeMo Export-Deploy, over Triton's HTTP port.

Code that used the reference changes one line::

    from nemo_deploy.multimodal import NemoQueryMultimodalPytorch   # before
    from clients import NemoQueryMultimodalPytorch                  # now
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from itertools import islice
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from clients.rest.errors import ConnectionFailed, MultimodalError, TimedOut
from clients.sources import Source, picture_file

Images: TypeAlias = "Sequence[Source | Sequence[Source] | None]"
"""For each prompt its picture, several, or none (``None`` or an empty text)."""

ANSWER_SECONDS = 330.0
"""Longer than the server works on one prompt."""
_PAUSE_SECONDS = 0.2

# What Triton itself answers with: the tensors' types are fixed, whatever Python's are.
_TYPES: dict[str, tuple[str, type[np.generic]]] = {
    "max_length": ("INT64", np.int64),
    "max_batch_size": ("INT64", np.int64),
    "top_k": ("INT64", np.int64),
    "top_p": ("FP32", np.float32),
    "temperature": ("FP32", np.float32),
    "random_seed": ("INT64", np.int64),
    "apply_chat_template": ("BOOL", np.bool_),
}


class QueryError(MultimodalError):
    """The server answered with an error; the message is its own sentence."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status."""


class QueryRefused(QueryError, ValueError):
    """The call cannot be answered as it is: a parameter out of range, a broken picture, a prompt that is too long."""


class ServerUnavailable(QueryError):
    """The server is full, stopping, or took too long; the same call may succeed later."""


class NemoQueryMultimodalPytorch:
    """Sends prompts and pictures to a model in Triton. Calls from several threads may run at the same time."""

    def __init__(self, url: str, model_name: str) -> None:
        """``url``: ``host``, ``host:port`` or ``http(s)://host:port`` of Triton's HTTP port, 8000 by default."""
        self.url = url
        self.model_name = model_name

    def query_multimodal(
        self,
        prompts: Sequence[str],
        images: Images | None = None,
        max_length: int | None = None,
        max_batch_size: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        random_seed: int | None = None,
        apply_chat_template: bool | None = None,
        init_timeout: float = 60.0,
    ) -> dict[str, Any]:
        """The answers, as the reference returns them: ``result["choices"][0]["text"]`` is a string array [prompts, 1].

        Args:
            prompts: A question each; or, with ``apply_chat_template=False``, a conversation already rendered.
            images: A picture for each prompt: Pillow's, a path, a URL, the bytes of a file, or its base64. A list of
                them is several pictures for one prompt; ``None`` in its place, or instead of the whole list, is none.
            max_length: Tokens to generate at most. Without it, and those below: what the server takes by default.
            max_batch_size: Prompts of this call computed at once, at most.
            top_k: Sample among the k likeliest tokens; 1 is greedy decoding, 0 all.
            top_p: Sample among the likeliest tokens whose probabilities add up to p; 0 is no limit.
            temperature: 0 is greedy decoding.
            random_seed: Makes sampling repeatable.
            apply_chat_template: ``True``: prompts are users' words (or JSON lists of messages), and special tokens in
                them are text. ``False``: prompts are rendered, special tokens are special. ``None``: what each looks
                like; not for prompts that strangers wrote.
            init_timeout: Seconds to wait for the server and the model.

        Raises:
            MultimodalError: one of its subclasses; the message is a sentence.
        """
        rows = _image_cells(prompts, images)
        given = {
            "max_length": max_length,
            "max_batch_size": max_batch_size,
            "top_k": top_k,
            "top_p": top_p,
            "temperature": temperature,
            "random_seed": random_seed,
            "apply_chat_template": apply_chat_template,
        }
        parameters = {name: value for name, value in given.items() if value is not None}
        with self._connected(init_timeout) as client:
            self._wait_for_model(client, init_timeout)
            most = client.get_model_config(self.model_name)["max_batch_size"]
            calls = zip(_in_lots(prompts, most), _in_lots(rows, most), strict=True)
            answers = [self._call(client, *call, parameters) for call in calls]
        now = int(time.time())
        return {
            "id": f"cmpl-{now}",
            "object": "text_completion",
            "created": now,
            "model": self.model_name,
            "choices": [{"text": np.concatenate(answers)}],
        }

    def _call(
        self, client: Any, prompts: list[str], rows: list[list[bytes]], parameters: dict[str, Any]
    ) -> NDArray[np.str_]:
        inputs = [_tensor("prompts", "BYTES", np.array([[prompt.encode()] for prompt in prompts], dtype=np.object_))]
        columns = max(map(len, rows))
        if columns:
            cells = [row + [b""] * (columns - len(row)) for row in rows]
            inputs.append(_tensor("images", "BYTES", np.array(cells, dtype=np.object_)))
        for name, value in parameters.items():
            kind, dtype = _TYPES[name]
            inputs.append(_tensor(name, kind, np.full((len(prompts), 1), value, dtype=dtype)))
        sentences = client.infer(self.model_name, inputs).as_numpy("sentences")
        return np.array([[text.decode() for text in row] for row in sentences], dtype=np.str_)

    def _wait_for_model(self, client: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            last = time.monotonic() >= deadline
            try:
                if client.is_model_ready(self.model_name):
                    return
            except OSError:  # nobody listens there yet
                if last:
                    raise
            if last:
                raise TimedOut(f"Triton at {self.url} has no model {self.model_name!r} after {seconds:g} seconds.")
            time.sleep(_PAUSE_SECONDS)

    @contextmanager
    def _connected(self, seconds: float) -> Iterator[Any]:
        """A client of Triton's, whose exceptions become ours."""
        address, tls = triton_address(self.url)
        client = triton.InferenceServerClient(
            address, ssl=tls, connection_timeout=max(seconds, 1.0), network_timeout=ANSWER_SECONDS
        )
        try:
            yield client
        except InferenceServerException as error:
            raise _query_error(error) from None
        except TimeoutError:
            raise TimedOut(f"Triton at {self.url} did not answer in time.") from None
        except OSError as error:
            raise ConnectionFailed(f"Triton at {self.url} cannot be reached: {error.strerror or error}.") from None
        except HTTPException:  # those of geventhttpclient, when the line breaks
            raise ConnectionFailed(f"Triton at {self.url} hung up before the answer was complete.") from None
        finally:
            client.close()


def _image_cells(prompts: Sequence[str], images: Images | None) -> list[list[bytes]]:
    """For each prompt its pictures, as base64."""
    if isinstance(prompts, str) or not prompts:
        raise QueryRefused("prompts must be a list with at least one prompt in it.", None)
    entries = list(images or [None] * len(prompts))
    if len(entries) != len(prompts):
        raise QueryRefused(
            f"There are {len(prompts)} prompts but {len(entries)} images; give one for each prompt, "
            "a list of several, or None.",
            None,
        )
    rows = []
    for entry in entries:
        several: Sequence[Any] = entry if isinstance(entry, (list, tuple)) else [entry]
        rows.append([base64.b64encode(picture_file(one)) for one in several if one is not None and one != ""])
    return rows


def _in_lots(rows: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """As many at a time as the model takes in one call."""
    iterator = iter(rows)
    while lot := list(islice(iterator, size)):
        yield lot


def _tensor(name: str, kind: str, values: NDArray[Any]) -> Any:
    tensor = triton.InferInput(name, list(values.shape), kind)
    tensor.set_data_from_numpy(values)
    return tensor


def triton_address(url: str) -> tuple[str, bool]:
    """``host:port`` and whether over TLS. Raises :class:`ConnectionFailed` for what is no address."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or 8000
    except ValueError:
        port = None
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None:
        raise ConnectionFailed(f"{url!r} is no address of Triton's HTTP port, such as localhost:8000.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}", parts.scheme == "https"


def _query_error(error: Any) -> QueryError:
    status = int(error.status()) if str(error.status()).isdigit() else None
    kind = QueryRefused if status in (400, 404) else ServerUnavailable if status == 503 else QueryError
    return kind(error.message(), status)
