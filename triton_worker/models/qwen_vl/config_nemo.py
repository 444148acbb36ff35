"""The common part of both families' sizes from the context of a NeMo 2.0 checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.fields import Fields
from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.decoder.config_nemo import head_dim_of, read_decoder
from triton_worker.models.qwen_vl.config import CLIP_MEAN, CLIP_STD

# NeMo hard-codes mRoPE's sections (nemo.collections.vlm.qwen2vl.model.base), and with them the head size.
ROPE_SECTIONS = (16, 24, 24)
HEAD_DIM = 2 * sum(ROPE_SECTIONS)

Presets = Mapping[str, Mapping[str, Any]]
"""A model made from a preset stores the name of the preset's class, and no field of it."""


def read_text(checkpoint: Checkpoint, presets: Presets) -> DecoderConfig:
    """Raises CheckpointError where the context lacks a size, or holds one that our model cannot have."""
    fields = section(checkpoint, "language_transformer_config", presets)
    head_dim = head_dim_of(fields)
    if head_dim != HEAD_DIM:
        raise fields.error("kv_channels", f"attention heads of size {HEAD_DIM} were expected, these have {head_dim}")
    return read_decoder(
        checkpoint, fields, norm_eps=1e-6, rope_theta=1000000.0, rope_sections=ROPE_SECTIONS, qkv_bias=True
    )


def section(checkpoint: Checkpoint, name: str, presets: Presets) -> Fields:
    """A section of the model's configuration, over the preset that the configuration or its language model names."""
    config = Fields(checkpoint.config, checkpoint.path / "context" / "io.json", "model.").section("config")
    language = config.section("language_transformer_config")
    targets = (fields.text("_target_", "").rpartition(".")[2] for fields in (config, language))
    preset = next((presets[target] for target in targets if target in presets), None)
    return config.section(name, preset)


def common_sizes(checkpoint: Checkpoint, fields: Fields) -> dict[str, Any]:
    """The arguments of `VisionConfig` that both families store alike, with the defaults of NeMo's classes."""
    file = checkpoint.tokenizer_directory / "preprocessor_config.json"
    image = Fields(checkpoint.image_processor or {}, file)
    return {
        "num_layers": fields.integer("num_layers", 32),
        "hidden_size": fields.integer("embed_dim", 1280),
        "num_heads": fields.integer("num_attention_heads", 16),
        "patch_size": fields.integer("patch_dim", 14),
        "temporal_patch_size": fields.integer("temporal_patch_size", 2),
        "merge_size": fields.integer("spatial_merge_size", 2),
        "norm_eps": fields.number("layernorm_epsilon", 1e-6),
        "image_mean": image.numbers("image_mean", CLIP_MEAN),
        "image_std": image.numbers("image_std", CLIP_STD),
    }
