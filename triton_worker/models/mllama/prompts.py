"""The prompts of Llama 3.2 Vision."""

from __future__ import annotations

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.models.mllama.config import read_config
from triton_worker.processing.pictures import PictureBoundsError
from triton_worker.processing.prompt_format import PromptFormat
from triton_worker.processing.tiles import Tiles
from triton_worker.processing.tokenizer import TokenizerFormat

TOKENIZER = TokenizerFormat(
    picture_token="<|image|>",
    config_tokens={"image_token_index": "<|image|>"},
    end_tokens=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
)

# Llama 3.2's conversation (model card, "Prompt Template"): a picture stands before its text, with nothing between.
LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{% for part in message['content'] %}"
    "{{ '<|image|>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' if add_generation_prompt else '' }}"
)


def prompt_format(checkpoint: Checkpoint, min_pixels: int | None = None, max_pixels: int | None = None) -> PromptFormat:
    """Raises PictureBoundsError where bounds are given, and CheckpointError where the sizes cannot be read."""
    vision = read_config(checkpoint).vision
    if min_pixels is not None or max_pixels is not None:
        raise PictureBoundsError(
            f"Bounds on a picture's size (--min_pixels, --max_pixels, --reference_image_limits) mean nothing to Llama "
            f"Vision: its pictures become up to {vision.max_tiles} tiles of {vision.image_size} x {vision.image_size} "
            f"pixels."
        )
    tiles = Tiles(vision.image_size, vision.max_tiles, vision.tile_tokens)
    return PromptFormat(TOKENIZER, tiles, LLAMA_3, pictures_beside=True)
