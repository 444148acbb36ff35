"""What a family says about its prompts, so that requests can be prepared without the model."""

from __future__ import annotations

from dataclasses import dataclass

from triton_worker.processing.pictures import PicturePreparation
from triton_worker.processing.tokenizer import TokenizerFormat


@dataclass(frozen=True)
class PromptFormat:
    """chat_template: the Jinja template for checkpoints that hold none; without one they are refused.

    pictures_beside: a picture's embeddings stand beside the prompt, in which one token says where it is. Otherwise they
    stand in the places of as many tokens.
    """

    tokenizer: TokenizerFormat
    pictures: PicturePreparation
    chat_template: str | None = None
    pictures_beside: bool = False
