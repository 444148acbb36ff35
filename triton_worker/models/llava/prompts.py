"""The prompts of LLaVA-1.5."""

from __future__ import annotations

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.models.llava.config import read_config
from triton_worker.processing.pictures import CentreCrop, PictureBoundsError
from triton_worker.processing.prompt_format import PromptFormat
from triton_worker.processing.tokenizer import TokenizerFormat

TOKENIZER = TokenizerFormat(
    picture_token="<image>", config_tokens={"image_token_index": "<image>"}, end_tokens=("</s>",)
)

# Vicuna 1.5's conversation, in which LLaVA-1.5 was trained: a picture stands on a line before its text.
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}"
    "{% set conversation = messages[1:] %}"
    "{% else %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
    "{% set conversation = messages %}"
    "{% endif %}"
    "{% for message in conversation %}"
    "{{ ' ASSISTANT: ' if message['role'] == 'assistant' else ' USER: ' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{{ eos_token | default('</s>') if message['role'] == 'assistant' else '' }}"
    "{% endfor %}"
    "{{ ' ASSISTANT:' if add_generation_prompt else '' }}"
)


def prompt_format(checkpoint: Checkpoint, min_pixels: int | None = None, max_pixels: int | None = None) -> PromptFormat:
    """Raises PictureBoundsError where bounds are given, and CheckpointError where the sizes cannot be read."""
    vision = read_config(checkpoint).vision
    if min_pixels is not None or max_pixels is not None:
        raise PictureBoundsError(
            f"Bounds on a picture's size (--min_pixels, --max_pixels, --reference_image_limits) mean nothing to LLaVA: "
            f"each of its pictures becomes {vision.image_size} x {vision.image_size} pixels."
        )
    return PromptFormat(TOKENIZER, CentreCrop(vision.image_size, vision.patch_size), VICUNA)
