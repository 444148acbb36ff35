"""The sizes of a Qwen2.5-VL model, whichever checkpoint they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triton_worker.checkpoint.errors import CheckpointError

# Side of the square of pixels that one picture embedding stands for: patches of 14 pixels, merged two by two.
PICTURE_UNIT = 28

# OpenAI CLIP's normalisation, which every Qwen2.5-VL was trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TextConfig:
    """The decoder. `mrope_section` says how many rotary frequencies turn with time, row and column, in that order."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, ...]
    tied_embeddings: bool


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. `window_size` is in pixels; blocks not in `full_attention_layers` attend within windows."""

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    full_attention_layers: tuple[int, ...]
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    window_size: int = 112
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def picture_unit(self) -> int:
        """Side, in pixels, of the square that one picture embedding stands for."""
        return self.patch_size * self.merge_size

    @property
    def window_side(self) -> int:
        """Picture embeddings along a side of a window."""
        return self.window_size // self.picture_unit


@dataclass(frozen=True)
class Qwen25VLConfig:
    text: TextConfig
    vision: VisionConfig


def check_config(config: Qwen25VLConfig, file: Path) -> Qwen25VLConfig:
    """`config` itself. Raises CheckpointError naming `file` where its sizes do not fit together."""
    text, vision = config.text, config.vision
    rules = (
        (text.num_heads % text.num_kv_heads == 0, "the attention heads divide evenly among the key-value heads"),
        (text.head_dim % 2 == 0, "an even size of the attention heads"),
        (len(text.mrope_section) == 3 and 2 * sum(text.mrope_section) == text.head_dim, "an mrope_section of three "
         f"numbers that add up to half of the head size ({text.head_dim})"),
        (vision.hidden_size % vision.num_heads == 0, "the vision width divides evenly among its attention heads"),
        (vision.head_dim % 4 == 0, "vision attention heads of a size divisible by 4"),
        (all(layer < vision.num_layers for layer in vision.full_attention_layers), "fullatt_block_indexes below the "
         f"number of vision layers ({vision.num_layers})"),
        (vision.picture_unit == PICTURE_UNIT, f"patches and merging that make a picture unit of {PICTURE_UNIT} pixels"),
        (vision.window_side > 0, f"a vision window of at least {vision.picture_unit} pixels"),
    )  # fmt: skip
    for holds, expected in rules:
        if not holds:
            raise CheckpointError(f"{file} describes sizes that do not fit together; expected: {expected}.")
    return config
