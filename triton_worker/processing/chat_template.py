"""The checkpoint's chat template: from messages to the text that the tokenizer reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from protocol.messages import ChatMessage, PicturePart
from triton_worker.checkpoint import CheckpointError
from triton_worker.checkpoint.checkpoint import read_json_object

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class TemplateError(ValueError):
    """The template refused the conversation, or failed on it; the message is fit for the caller."""


class ChatTemplate:
    """A Jinja template out of a checkpoint, run in a sandbox: it sees the messages and nothing else.

    Raises:
        CheckpointError: there is no template, or it is no valid one.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """``special_tokens``: what the template may call by name, such as ``eos_token``."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.globals.update(special_tokens or {})
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError(f"The checkpoint's chat template is not valid Jinja: {error}") from error

    @classmethod
    def of(cls, directory: Path, otherwise: str | None = None) -> ChatTemplate:
        """The template stored beside the tokenizer, in any of the places Hugging Face keeps it, or else the given."""
        settings_path = directory / "tokenizer_config.json"
        special_tokens = _special_tokens(read_json_object(settings_path)) if settings_path.exists() else {}
        if (directory / "chat_template.jinja").exists():
            try:
                return cls((directory / "chat_template.jinja").read_text(encoding="utf-8"), special_tokens)
            except UnicodeDecodeError:
                raise CheckpointError(f"{directory / 'chat_template.jinja'} is not UTF-8 text.") from None
        for path in (settings_path, directory / "chat_template.json"):
            if path.exists() and (source := _template_in(read_json_object(path))):
                return cls(source, special_tokens)
        if otherwise is not None:
            return cls(otherwise, special_tokens)
        raise CheckpointError(f"{directory}: no chat template; tokenizer_config.json should hold one as chat_template.")

    def render(self, messages: Sequence[ChatMessage], special_tokens: Sequence[str]) -> tuple[str, str]:
        """The conversation as text, up to where the answer begins, and the literal mark in it.

        User text must not make special tokens, also not together with the text beside it. So the mark, a character that
        no message contains, is put after each character that could begin one; the tokenizer takes it out again.

        Raises:
            TemplateError: the template refuses these messages.
        """
        texts = [part.text for m in messages for part in m.content if not isinstance(part, PicturePart)]
        mark = _unused_character("".join(texts))
        marks = str.maketrans({token[0]: token[0] + mark for token in special_tokens})
        rendered_messages = [
            {
                "role": message.role,
                "content": [
                    {"type": "image"}
                    if isinstance(part, PicturePart)
                    else {"type": "text", "text": part.text.translate(marks)}
                    for part in message.content
                ],
            }
            for message in messages
        ]
        try:
            return self._template.render(messages=rendered_messages, add_generation_prompt=True), mark
        except TemplateError:
            raise
        except Exception as error:  # whatever a template may run into
            raise TemplateError("It fails on these messages.") from error


class _Generation(Extension):
    """``{% generation %}`` marks what the model said, for training; here its content is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 (as the base class has it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """The texts of ``bos_token`` and its like, each a string or an object with a content."""
    named = {name: settings.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _template_in(document: dict[str, Any]) -> str | None:
    """``chat_template`` is a string, or a list of named ones of which ``default`` counts."""
    stored = document.get("chat_template")
    if isinstance(stored, list):
        named = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)}
        stored = named.get("default")
    return stored if isinstance(stored, str) else None


def _unused_character(text: str) -> str:
    present = set(text)
    unused = (chr(code) for codes in _PRIVATE_USE for code in codes if chr(code) not in present)
    mark = next(unused, None)
    if mark is None:
        raise TemplateError("The text uses every private character of Unicode.")
    return mark


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
