"""The sizes of a Qwen2-VL or Qwen2.5-VL model, whichever checkpoint they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from triton_worker.models.decoder.config import DecoderConfig, Rule, decoder_rules

# Side of the square of pixels that one picture embedding stands for: patches of 14 pixels, merged two by two.
PICTURE_UNIT = 28

# OpenAI CLIP's normalisation, which both families were trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """What the vision towers of both families have."""

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
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
    def unit_size(self) -> int:
        """Width of a unit's patches side by side."""
        return self.hidden_size * self.merge_size**2


Vision = TypeVar("Vision", bound=VisionConfig, covariant=True)


@dataclass(frozen=True)
class QwenVLConfig(Generic[Vision]):
    text: DecoderConfig
    vision: Vision


def common_rules(config: QwenVLConfig[VisionConfig]) -> tuple[Rule, ...]:
    vision = config.vision
    return (
        *decoder_rules(config.text),
        (vision.hidden_size % vision.num_heads == 0, "the vision width divides evenly among its attention heads"),
        (vision.head_dim % 4 == 0, "vision attention heads of a size divisible by 4"),
        (vision.picture_unit == PICTURE_UNIT, f"patches and merging that make a picture unit of {PICTURE_UNIT} pixels"),
    )
