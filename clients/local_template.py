"""A chat template out of a local directory, for callers that want another than the served model's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clients.rest.errors import MultimodalError


class TemplateError(MultimodalError):
    """The directory holds no chat template, or one that fails."""


def render(directory: Path, messages: list[dict[str, Any]]) -> str:
    """The conversation as text, up to where the answer begins. Raises :class:`TemplateError`."""
    try:
        from jinja2 import TemplateError as JinjaError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise TemplateError("Applying a chat template here needs the package jinja2.") from None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        return environment.from_string(_source(directory)).render(messages=messages, add_generation_prompt=True)
    except JinjaError as error:
        raise TemplateError(f"The chat template in {directory} fails: {error}.") from None


def _source(directory: Path) -> str:
    path = directory / "chat_template.jinja"
    try:
        if path.exists():
            return path.read_text(encoding="utf-8")
        for path in (directory / "chat_template.json", directory / "tokenizer_config.json"):
            stored = json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.exists() else None
            if isinstance(stored, str):
                return stored
    except (OSError, ValueError, AttributeError):
        raise TemplateError(f"{path} cannot be read.") from None
    raise TemplateError(f"{directory} holds no chat template.")
