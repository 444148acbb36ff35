"""Qwen2.5-VL's sizes from the context of a NeMo 2.0 checkpoint."""

from __future__ import annotations

from typing import Any

from triton_worker.checkpoint.checkpoint import Checkpoint, TensorReader
from triton_worker.checkpoint.fields import Fields
from triton_worker.models.qwen2_5_vl.config import (
    CLIP_MEAN,
    CLIP_STD,
    Qwen25VLConfig,
    TextConfig,
    VisionConfig,
    check_config,
)
from triton_worker.models.qwen2_5_vl.weights_nemo import WORD_EMBEDDINGS

# NeMo hard-codes mRoPE's sections (nemo.collections.vlm.qwen2vl.model.base), and with them the head size.
_MROPE_SECTION = (16, 24, 24)
_HEAD_DIM = 2 * sum(_MROPE_SECTION)

# A model made from a preset stores the preset's name and no field of it. From nemo.collections.llm.gpt.model.qwen2 and
# nemo.collections.vlm.qwen2vl.model.qwen2vl.
_PRESETS: dict[str, dict[str, Any]] = {
    "3B": {
        "num_layers": 36, "hidden_size": 2048, "num_attention_heads": 16, "num_query_groups": 2,
        "ffn_hidden_size": 11008, "vocab_size": 151936, "share_embeddings_and_output_weights": True,
    },
    "7B": {
        "num_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_query_groups": 4,
        "ffn_hidden_size": 18944, "vocab_size": 152064,
    },
    "32B": {
        "num_layers": 64, "hidden_size": 5120, "num_attention_heads": 40, "num_query_groups": 8,
        "ffn_hidden_size": 27648, "vocab_size": 152064, "layernorm_epsilon": 1e-5,
    },
    "72B": {
        "num_layers": 80, "hidden_size": 8192, "num_attention_heads": 64, "num_query_groups": 8,
        "ffn_hidden_size": 29568, "vocab_size": 152064, "layernorm_epsilon": 1e-5,
    },
}  # fmt: skip
_VISION_PRESETS: dict[str, dict[str, Any]] = {"32B": {"ffn_hidden_size": 3456}, "72B": {"ffn_hidden_size": 3456}}


def config_from_nemo(checkpoint: Checkpoint) -> Qwen25VLConfig:
    """Raises CheckpointError where the context lacks a size, or holds one that our model cannot have."""
    file = checkpoint.path / "context" / "io.json"
    config = Fields(checkpoint.config, file, "model.").section("config")
    preset = _preset_size(config.text("_target_", "")) or _preset_size(
        config.section("language_transformer_config").text("_target_", "")
    )
    image = Fields(checkpoint.image_processor or {}, checkpoint.tokenizer_directory / "preprocessor_config.json")
    return check_config(
        Qwen25VLConfig(
            text=_text(config.section("language_transformer_config", _PRESETS.get(preset)), checkpoint.weights),
            vision=_vision(config.section("vision_transformer_config", _VISION_PRESETS.get(preset)), image),
        ),
        file,
    )


def _preset_size(target: str) -> str:
    """The 3B of `...Qwen25VLConfig3B` or `...Qwen25Config3B`; empty for a class that is no preset."""
    name = target.rpartition(".")[2]
    for prefix in ("Qwen25VLConfig", "Qwen25Config"):
        if name.startswith(prefix) and name[len(prefix) :] in _PRESETS:
            return name[len(prefix) :]
    return ""


def _text(fields: Fields, weights: TensorReader) -> TextConfig:
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    head_dim = fields.integer("kv_channels", max(1, hidden_size // num_heads))
    if head_dim != _HEAD_DIM:
        raise fields.error("kv_channels", f"attention heads of size {_HEAD_DIM} were expected, these have {head_dim}")
    return TextConfig(
        num_layers=fields.integer("num_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_query_groups", num_heads),
        head_dim=head_dim,
        intermediate_size=fields.integer("ffn_hidden_size"),
        # Without a size of its own NeMo pads the tokenizer's, so only the tensor knows it.
        vocab_size=fields.integer("vocab_size", weights.shape(WORD_EMBEDDINGS)[0]),
        norm_eps=fields.number("layernorm_epsilon", 1e-6),
        rope_theta=fields.number("rotary_base", 1000000.0),
        mrope_section=_MROPE_SECTION,
        tied_embeddings=fields.flag("share_embeddings_and_output_weights", False),
    )


def _vision(fields: Fields, image: Fields) -> VisionConfig:
    """The defaults are those of NeMo's Qwen25VLVisionConfig."""
    return VisionConfig(
        num_layers=fields.integer("num_layers", 32),
        hidden_size=fields.integer("embed_dim", 1280),
        num_heads=fields.integer("num_attention_heads", 16),
        intermediate_size=fields.integer("ffn_hidden_size", 3420),
        full_attention_layers=fields.integers("fullatt_block_indexes", (7, 15, 23, 31)),
        patch_size=fields.integer("patch_dim", 14),
        temporal_patch_size=fields.integer("temporal_patch_size", 2),
        merge_size=fields.integer("spatial_merge_size", 2),
        norm_eps=fields.number("layernorm_epsilon", 1e-6),
        image_mean=image.numbers("image_mean", CLIP_MEAN),
        image_std=image.numbers("image_std", CLIP_STD),
    )
