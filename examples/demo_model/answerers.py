"""Who answers the questions of an evaluation: the engine in this process, or a server over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from protocol.messages import ChatMessage, PicturePart, SamplingParameters, Submit, TextPart
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.engine import Engine
from triton_worker.engine.limits import EngineLimits
from triton_worker.models.registry import load_model, prompts_of
from triton_worker.processing.pictures import PictureLimits
from triton_worker.processing.processor import Processor

MAX_TOKENS = 96


@dataclass(frozen=True)
class Question:
    """A prompt and the PNG or JPEG files it is about."""

    prompt: str
    pictures: tuple[bytes, ...] = ()


Answerer = Callable[[Sequence[Question]], list[str]]


def local_answerer(checkpoint_directory: Path) -> Answerer:
    """Greedy answers from the checkpoint (NeMo 2.0 or Hugging Face) in float32, on the GPU where there is one."""
    checkpoint = open_checkpoint(checkpoint_directory)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(checkpoint, torch.float32, device)
    processor = Processor(checkpoint, prompts_of(checkpoint.family).prompt_format(checkpoint), PictureLimits())
    image_token = processor.tokenizer.image_token_id

    def answer(questions: Sequence[Question]) -> list[str]:
        engine = Engine(model, image_token, checkpoint.seq_length, EngineLimits(max_sequences=16))
        for index, question in enumerate(questions):
            engine.add(processor.prepare(_submit(question), str(index), engine.context_length))
        tokens: dict[str, list[int]] = {str(index): [] for index in range(len(questions))}
        with torch.inference_mode():
            while engine.has_work:
                for token in engine.step().tokens:
                    tokens[token.request_id].append(token.token_id)
        return [processor.tokenizer.decode(tokens[str(index)]).strip() for index in range(len(questions))]

    return answer


def http_answerer(url: str, connections: int = 8) -> Answerer:
    """Greedy answers from the REST gateway at `url`, for example http://localhost:8080."""

    def ask(question: Question) -> str:
        fields = {"prompt": question.prompt, "params": json.dumps({"max_tokens": MAX_TOKENS, "temperature": 0})}
        body, content_type = _multipart(fields, question.pictures)
        request = urllib.request.Request(f"{url.rstrip('/')}/v1/multimodal/generate", body)
        request.add_header("Content-Type", content_type)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                text: str = json.load(response)["choices"][0]["text"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{url} answered {error.code}: {error.read()[:500].decode(errors='replace')}") from None
        return text.strip()

    def answer(questions: Sequence[Question]) -> list[str]:
        with ThreadPoolExecutor(connections) as pool:
            return list(pool.map(ask, questions))

    return answer


def _submit(question: Question) -> Submit:
    content: list[PicturePart | TextPart] = [PicturePart(index) for index in range(len(question.pictures))]
    content.append(TextPart(question.prompt))
    return Submit(
        request_id="evaluation",
        model="demo",
        messages=(ChatMessage("user", tuple(content)),),
        pictures=question.pictures,
        sampling=SamplingParameters(max_tokens=MAX_TOKENS, temperature=0.0),
    )


def _multipart(fields: dict[str, str], pictures: Sequence[bytes]) -> tuple[bytes, str]:
    """A multipart/form-data body of RFC 7578 and its content type."""
    boundary = uuid.uuid4().hex
    body = b""
    for name, value in fields.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    for index, picture in enumerate(pictures):
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{index}"\r\n\r\n'.encode()
        body += picture + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
