"""Multipart forms read as they arrive, each part bounded before it is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import bad_request

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MALFORMED = "The multipart body is malformed or incomplete."


@dataclass
class Part:
    name: str
    has_file_name: bool
    data: bytearray = field(default_factory=bytearray)


async def read_parts(
    content_type: str, body: AsyncIterator[bytes], *, max_parts: int, check_size: Callable[[Part], None]
) -> list[Part]:
    """The parts of a form, in order. ``check_size`` sees each part as it grows, and raises what it has against it."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise bad_request("The multipart body's Content-Type has no boundary.")
    reader = _Reader(max_parts, check_size)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        async for chunk in body:
            parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise bad_request(MALFORMED) from None
    if not reader.ended:
        raise bad_request(MALFORMED)
    return reader.parts


class _Reader:
    """Puts the parser's events together."""

    def __init__(self, max_parts: int, check_size: Callable[[Part], None]) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._max_parts = max_parts
        self._check_size = check_size
        self._name = b""
        self._value = b""
        self._disposition = b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_to_name,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._disposition = b""
        if len(self.parts) == self._max_parts:
            raise bad_request(f"The multipart body has more than {self._max_parts} parts.")

    def _add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _end_headers(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"name" not in options:
            raise bad_request("A part of the multipart body has no name.")
        name = options[b"name"].decode("utf-8", "replace")
        self.parts.append(Part(name, has_file_name=bool(options.get(b"filename"))))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.data += data[start:end]
        self._check_size(part)

    def _end(self) -> None:
        self.ended = True
