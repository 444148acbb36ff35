"""The sizes of a Llama 3.2 Vision model, whichever checkpoint they came from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.fields import Fields
from triton_worker.models.decoder.config import DecoderConfig, check_rules, decoder_rules
from triton_worker.models.decoder.config_nemo import head_dim_of, read_decoder
from triton_worker.models.decoder.rope import Llama3Scaling
from triton_worker.processing.tiles import arrangements

READ_ONLY_TOKENS = 8
"""The picture's token and seven that nothing uses, behind the vocabulary."""

# Of the published preprocessor_config.json.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

# What NeMo's code states and no checkpoint of it (nemo.collections.vlm.mllama.model.base.CrossAttentionVisionModel).
NEMO_TOWER: dict[str, Any] = {"hidden_size": 1280, "patch_size": 14, "intermediate_layers": (3, 7, 15, 23, 30)}

# By class of the whole configuration, in NeMo; the defaults of the two classes in it are those of 11B.
_TEXT_11B: dict[str, Any] = {
    "num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_query_groups": 8, "ffn_hidden_size": 14336,
    "num_cross_attention_layers": 8, "vocab_size": 128256,
}  # fmt: skip
_TEXT_90B = {
    **_TEXT_11B, "num_layers": 80, "hidden_size": 8192, "num_attention_heads": 64, "ffn_hidden_size": 28672,
    "num_cross_attention_layers": 20,
}  # fmt: skip
_TEXT_PRESETS = {"MLlamaConfig90B": _TEXT_90B, "MLlamaConfig90BInstruct": _TEXT_90B}
_VISION_PRESETS: dict[str, dict[str, Any]] = {
    "MLlamaConfig11B": {"vision_chunk_size": 448},
    "MLlamaConfig11BInstruct": {"vision_chunk_size": 560},
    "MLlamaConfig90B": {"vision_chunk_size": 560},
    "MLlamaConfig90BInstruct": {"vision_chunk_size": 560},
}


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. What goes into each of `intermediate_layers` is part of its output, beside what leaves it."""

    num_layers: int
    num_global_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    image_size: int
    """Side of a tile in pixels."""
    patch_size: int
    max_tiles: int
    intermediate_layers: tuple[int, ...]
    norm_eps: float = 1e-5
    image_mean: tuple[float, ...] = IMAGE_MEAN
    image_std: tuple[float, ...] = IMAGE_STD

    @property
    def side(self) -> int:
        """Patches along a side of a tile."""
        return self.image_size // self.patch_size

    @property
    def tile_tokens(self) -> int:
        """Embeddings of a tile: one for each patch, and one for all of it."""
        return self.side**2 + 1

    @property
    def output_size(self) -> int:
        return self.hidden_size * (1 + len(self.intermediate_layers))


@dataclass(frozen=True)
class MllamaConfig:
    text: DecoderConfig
    vision: VisionConfig


def read_config(checkpoint: Checkpoint) -> MllamaConfig:
    """Raises CheckpointError where the checkpoint lacks a size, or holds one that our model cannot have."""
    if checkpoint.layout == "nemo":
        file = checkpoint.path / "context" / "io.json"
        top = Fields(checkpoint.config, file, "model.").section("config")
        config = MllamaConfig(_text_from_nemo(top, checkpoint), _vision_from_nemo(top, checkpoint))
    else:
        file = checkpoint.path / "config.json"
        top = Fields(checkpoint.config, file)
        config = MllamaConfig(_text_from_huggingface(top), _vision_from_huggingface(top, checkpoint))
    _check(config, file)
    return config


def nemo_cross_attention_layers(num_self: int, num_cross: int) -> tuple[int, ...]:
    """Where NeMo puts cross-attention layers among the others, counted together: evenly, and one before the last."""
    every = math.ceil(num_self / num_cross)
    behind = [*range(num_self)][::-every][:num_cross][::-1]
    return tuple(layer + place for place, layer in enumerate(behind))


def _text_from_huggingface(top: Fields) -> DecoderConfig:
    """The defaults are those of transformers' MllamaTextConfig."""
    fields = top.section("text_config")
    fields.only("hidden_act", "silu")
    if top.flag("tie_word_embeddings", False) or fields.flag("tie_word_embeddings", False):
        raise fields.error("tie_word_embeddings", "an output matrix of its own was expected")
    rope = fields.section("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    num_layers = fields.integer("num_hidden_layers", 40)
    hidden_size, num_heads = fields.integer("hidden_size", 4096), fields.integer("num_attention_heads", 32)
    head_dim = max(1, hidden_size // num_heads)
    return DecoderConfig(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", 8),
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size", 14336),
        vocab_size=fields.integer("vocab_size", 128256),
        norm_eps=fields.number("rms_norm_eps", 1e-5),
        rope_theta=rope.number("rope_theta", fields.number("rope_theta", 500000.0)),
        rope_sections=(head_dim // 2, 0, 0),
        tied_embeddings=False,
        qkv_bias=False,
        rope_scaling=_rope_scaling(rope),
        cross_attention_layers=fields.integers("cross_attention_layers", (3, 8, 13, 18, 23, 28, 33, 38)),
        read_only_tokens=READ_ONLY_TOKENS,
    )


def _rope_scaling(rope: Fields) -> Llama3Scaling | None:
    kind = rope.text("rope_type", "default")
    if kind == "default":
        return None
    if kind != "llama3":
        raise rope.error("rope_type", "'default' or 'llama3' was expected")
    return Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_length=rope.integer("original_max_position_embeddings"),
    )


def _vision_from_huggingface(top: Fields, checkpoint: Checkpoint) -> VisionConfig:
    """The defaults are those of transformers' MllamaVisionConfig."""
    fields = top.section("vision_config")
    fields.only("hidden_act", "gelu")
    max_tiles = fields.integer("max_num_tiles", 4)
    _check_arrangements(fields, max_tiles)
    vision = VisionConfig(
        num_layers=fields.integer("num_hidden_layers", 32),
        num_global_layers=fields.integer("num_global_layers", 8),
        hidden_size=fields.integer("hidden_size", 1280),
        num_heads=fields.integer("attention_heads", fields.integer("num_attention_heads", 16)),
        intermediate_size=fields.integer("intermediate_size", 5120),
        image_size=fields.integer("image_size", 448),
        patch_size=fields.integer("patch_size", 14),
        max_tiles=max_tiles,
        intermediate_layers=fields.integers("intermediate_layers_indices", (3, 7, 15, 23, 30)),
        norm_eps=fields.number("norm_eps", 1e-5),
        **_normalisation(checkpoint),
    )
    if fields.integer("vision_output_dim", vision.output_size) != vision.output_size:
        raise fields.error("vision_output_dim", f"{vision.output_size} follows from the other sizes and was expected")
    return vision


def _text_from_nemo(top: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """The defaults are those of NeMo's CrossAttentionTextConfig."""
    fields = top.section("language_model_config", _TEXT_PRESETS.get(top.class_name, _TEXT_11B))
    if fields.flag("share_embeddings_and_output_weights", False):
        raise fields.error("share_embeddings_and_output_weights", "an output matrix of its own was expected")
    num_self, num_cross = fields.integer("num_layers"), fields.integer("num_cross_attention_layers")
    text = read_decoder(
        checkpoint,
        fields,
        norm_eps=1e-5,
        rope_theta=500000.0,
        rope_sections=(head_dim_of(fields) // 2, 0, 0),
        qkv_bias=False,
    )
    return replace(
        text,
        num_layers=num_self + num_cross,
        rope_scaling=Llama3Scaling(
            factor=fields.number("scale_factor", 8.0),
            low_freq_factor=fields.number("low_freq_factor", 1.0),
            high_freq_factor=fields.number("high_freq_factor", 4.0),
            original_length=fields.integer("old_context_len", 8192),
        ),
        cross_attention_layers=nemo_cross_attention_layers(num_self, num_cross),
        read_only_tokens=READ_ONLY_TOKENS,
    )


def _vision_from_nemo(top: Fields, checkpoint: Checkpoint) -> VisionConfig:
    """The defaults are those of NeMo's CrossAttentionVisionConfig."""
    fields = top.section("vision_model_config", _VISION_PRESETS.get(top.class_name, {}))
    hidden_size = fields.integer("hidden_size", 1280)
    max_tiles = fields.integer("max_num_tiles", 4)
    _check_arrangements(fields, max_tiles)
    if fields.integer("vision_max_num_chunks", 4) != max_tiles:
        raise fields.error("vision_max_num_chunks", f"max_num_tiles, which is {max_tiles}, was expected")
    return VisionConfig(
        num_layers=fields.integer("num_layers", 32),
        num_global_layers=fields.integer("num_global_layers", 8),
        hidden_size=hidden_size,
        num_heads=fields.integer("num_attention_heads", 16),
        intermediate_size=fields.integer("ffn_hidden_size", 4 * hidden_size),
        image_size=fields.integer("vision_chunk_size"),
        patch_size=NEMO_TOWER["patch_size"],
        max_tiles=max_tiles,
        intermediate_layers=NEMO_TOWER["intermediate_layers"],
        norm_eps=fields.number("layernorm_epsilon", 1e-5),
        **_normalisation(checkpoint),
    )


def _check_arrangements(fields: Fields, max_tiles: int) -> None:
    """The place of a picture's arrangement of tiles among all of them is what the tower knows it by."""
    expected = [list(shape) for shape in arrangements(max_tiles)]
    if fields.has("supported_aspect_ratios") and fields.plain("supported_aspect_ratios") != expected:
        raise fields.error("supported_aspect_ratios", f"all arrangements of up to {max_tiles} tiles were expected")


def _normalisation(checkpoint: Checkpoint) -> dict[str, Any]:
    file = checkpoint.tokenizer_directory / "preprocessor_config.json"
    image = Fields(checkpoint.image_processor or {}, file)
    return {"image_mean": image.numbers("image_mean", IMAGE_MEAN), "image_std": image.numbers("image_std", IMAGE_STD)}


def _check(config: MllamaConfig, file: Path) -> None:
    text, vision = config.text, config.vision
    scaling = text.rope_scaling
    rules = (
        *decoder_rules(text),
        (0 < len(text.cross_attention_layers) <= text.num_layers // 2, "cross-attention layers, at most half of all"),
        (scaling is None or scaling.low_freq_factor < scaling.high_freq_factor, "low_freq_factor < high_freq_factor"),
        (vision.hidden_size % vision.num_heads == 0, "the vision width divides evenly among its attention heads"),
        (vision.image_size % vision.patch_size == 0, "tiles that are a whole number of patches wide"),
        (vision.max_tiles <= 64, "at most 64 tiles a picture"),
        (
            list(vision.intermediate_layers) == sorted({*range(vision.num_layers)} & {*vision.intermediate_layers}),
            f"intermediate layers that are some of the tower's {vision.num_layers}, in order",
        ),
    )
    check_rules(rules, file)
