"""What the gateway's benchmark asks: the same of the engine alone and of the servers."""

from __future__ import annotations

import base64
import io
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from protocol.messages import ChatMessage, PicturePart, SamplingParameters, Submit, TextPart
from tests.e2e.deployment import MODEL

JPEG_QUALITY = 90


@dataclass(frozen=True)
class Question:
    """One greedy request whose answer has a given length."""

    text: str
    picture: bytes | None
    output_tokens: int

    def submit(self) -> Submit:
        """As the gateway would tell it to the worker."""
        pictures = () if self.picture is None else (self.picture,)
        content = (*map(PicturePart, range(len(pictures))), TextPart(self.text))
        sampling = SamplingParameters(max_tokens=self.output_tokens, temperature=0.0, ignore_eos=True)
        messages = (ChatMessage("user", content),)
        return Submit(request_id="-", model=MODEL, messages=messages, pictures=pictures, sampling=sampling)

    def body(self) -> dict[str, Any]:
        """As a caller would ask it of the gateway: a chat completion."""
        content: list[dict[str, Any]] = [{"type": "text", "text": self.text}]
        if self.picture is not None:
            url = f"data:image/jpeg;base64,{base64.b64encode(self.picture).decode()}"
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        return {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }


class Questions:
    """Any number of them, no two alike, so that no cache of prompts or pictures answers."""

    def __init__(self, picture_size: tuple[int, int] | None, output_tokens: int) -> None:
        """``picture_size``: width and height of the picture before each text; ``None``: text alone."""
        self._picture_size = picture_size
        self._output_tokens = output_tokens
        self._numbers = itertools.count()

    def of_streams(self, streams: int, each: int) -> list[Question]:
        """``each`` for each of so many callers, who take the next one when theirs is answered.

        The first answer of each caller is cut short, of each elsewhere, so that from then on they neither ask nor end
        together, as independent callers do not.
        """
        first = [self._output_tokens * (caller + 1) // streams for caller in range(streams)]
        lengths = itertools.chain(first, itertools.repeat(self._output_tokens, streams * (each - 1)))
        return [self._question(max(1, length)) for length in lengths]

    def _question(self, output_tokens: int) -> Question:
        number = next(self._numbers)
        picture = None if self._picture_size is None else photograph(number, *self._picture_size)
        return Question(f"{number} is a number. What else can be said of it?", picture, output_tokens)


def photograph(seed: int, width: int, height: int) -> bytes:
    """A JPEG that takes about as many bytes as a photograph of this size: smooth colours with some grain."""
    random = np.random.default_rng(seed)
    colours = Image.frombytes("RGB", (8, 8), random.bytes(8 * 8 * 3)).resize((width, height), Image.Resampling.BICUBIC)
    grain = np.frombuffer(random.bytes(width * height * 3), dtype=np.uint8) & 0x0F
    picture = ImageChops.add(colours, Image.frombytes("RGB", (width, height), grain.tobytes()))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
