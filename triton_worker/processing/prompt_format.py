"""What a family says about its prompts, so that requests can be prepared without the model."""

from __future__ import annotations

from dataclasses import dataclass

from triton_worker.processing.pictures import PicturePreparation
from triton_worker.processing.tokenizer import TokenizerFormat


@dataclass(frozen=True)
class PromptFormat:
    """chat_template: the Jinja template for checkpoints that hold none; without one they are refused."""

    tokenizer: TokenizerFormat
    pictures: PicturePreparation
    chat_template: str | None = None
