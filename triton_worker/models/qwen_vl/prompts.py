"""The prompts of both families."""

from __future__ import annotations

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.models.qwen_vl.config import PICTURE_UNIT
from triton_worker.processing.pictures import PictureBoundsError, ResizeBounds, SmartResize
from triton_worker.processing.prompt_format import PromptFormat
from triton_worker.processing.tokenizer import TokenizerFormat

TOKENIZER = TokenizerFormat(
    picture_token="<|image_pad|>",
    config_tokens={
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "vision_token_id": "<|vision_pad|>",
    },
    end_tokens=("<|im_end|>", "<|endoftext|>"),
    # That of Qwen2Tokenizer in Hugging Face transformers.
    split=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
)


def prompt_format(checkpoint: Checkpoint, min_pixels: int | None = None, max_pixels: int | None = None) -> PromptFormat:
    """With the flags' bounds, or else the checkpoint's, or else the published defaults. NeMo 2.0 stores none.

    Raises PictureBoundsError where they leave no size.
    """
    stored = checkpoint.image_processor or {}
    default = ResizeBounds()
    try:
        bounds = ResizeBounds(
            min_pixels=int(min_pixels or stored.get("min_pixels") or default.min_pixels),
            max_pixels=int(max_pixels or stored.get("max_pixels") or default.max_pixels),
        )
    except (TypeError, ValueError):
        message = "--min_pixels must not be above --max_pixels (or the checkpoint's own bounds)."
        raise PictureBoundsError(message) from None
    return PromptFormat(TOKENIZER, SmartResize(bounds, PICTURE_UNIT))
