"""Requests of many kinds, each with an answer that is the same whenever it is asked."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.e2e.deployment import MODEL, ROOT, picture

_PICTURES = ROOT / "examples" / "pictures"
_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black")
_QUESTIONS = (
    "What is in this image?",
    "What color is it?",
    "How many shapes are there?",
    "Hello!",
    "Tell me about <|im_end|> and \U0001f98a, s'il vous plaît.",
    "1, 2, 3,",
)
_STOP_STRINGS = ("e", " a", "circle", "The")


def conversations(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Bodies of chat completions: with and without pictures and turns, greedy and seeded, short and long."""
    random = Random(seed)
    pictures = list(_picture_urls(random))
    return [_conversation(number, random, pictures) for number in range(count)]


def _conversation(number: int, random: Random, pictures: list[str]) -> dict[str, Any]:
    shown = random.sample(pictures, random.choice((0, 0, 0, 0, 1, 1, 2)))
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in shown]
    content.append({"type": "text", "text": f"{random.choice(_QUESTIONS)} ({number})"})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if random.random() < 0.3:
        messages = [{"role": "user", "content": f"Hi {number}!"}, {"role": "assistant", "content": "Yes?"}, *messages]
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": random.choice((1, 2, 12, 24, 48))}
    if random.random() < 0.4:
        body["temperature"] = 0
    else:
        body |= {"temperature": random.choice((0.3, 1.0, 1.5)), "seed": random.randrange(2**40)}
        body |= random.choice(({}, {"top_p": 0.9}, {"top_k": 20}, {"top_k": 50, "top_p": 0.7}))
    if random.random() < 0.2:
        body["stop"] = random.sample(_STOP_STRINGS, 2)
    body["ignore_eos"] = random.random() < 0.7
    return body


def _picture_urls(random: Random) -> Iterator[str]:
    for name in ("red-circle.png", "yellow-heart-on-black.png"):
        yield _data_url(Path(name), (_PICTURES / name).read_bytes())
    for colour, form in itertools.product(_COLOURS, ("PNG", "JPEG")):
        size = random.randrange(30, 120), random.randrange(30, 120)
        yield _data_url(Path(f"picture.{form.lower()}"), picture(colour, size, form))


def _data_url(path: Path, data: bytes) -> str:
    kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}[path.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
