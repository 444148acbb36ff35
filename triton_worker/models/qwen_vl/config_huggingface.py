"""The common part of both families' sizes from the config.json of a Hugging Face checkpoint."""

from __future__ import annotations

from typing import Any

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.fields import Fields
from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.qwen_vl.config import CLIP_MEAN, CLIP_STD


def read_text(checkpoint: Checkpoint) -> DecoderConfig:
    """Reads both the flat config.json of transformers 4 and the nested one of 5. Raises CheckpointError."""
    top = Fields(checkpoint.config, checkpoint.path / "config.json")
    fields = top.section("text_config") if top.has("text_config") else top
    if fields.text("hidden_act", "silu") != "silu":
        raise fields.error("hidden_act", "only 'silu' is supported")
    if fields.flag("use_sliding_window", False):
        raise fields.error("use_sliding_window", "only full attention is supported")
    rope = fields.section("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    kind = "rope_type" if rope.has("rope_type") else "type"
    if rope.text(kind, "mrope") not in ("mrope", "default"):
        raise rope.error(kind, "only 'mrope' and 'default' are supported")
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    return DecoderConfig(
        num_layers=fields.integer("num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=fields.integer("head_dim", max(1, hidden_size // num_heads)),
        intermediate_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        norm_eps=fields.number("rms_norm_eps", 1e-5),
        rope_theta=rope.number("rope_theta", fields.number("rope_theta", 1000000.0)),
        rope_sections=rope.integers("mrope_section", (16, 24, 24)),
        # transformers 4 and 5 keep the flag at the top; some versions between kept it with the text.
        tied_embeddings=top.flag("tie_word_embeddings", False) or fields.flag("tie_word_embeddings", False),
        qkv_bias=True,
    )


def vision_section(checkpoint: Checkpoint, activation: str) -> Fields:
    """The vision tower's fields, whose activation must be this one. Raises CheckpointError."""
    fields = Fields(checkpoint.config, checkpoint.path / "config.json").section("vision_config")
    if fields.text("hidden_act", activation) != activation:
        raise fields.error("hidden_act", f"only {activation!r} is supported")
    if fields.integer("in_channels", 3) != 3:
        raise fields.error("in_channels", "3 (red, green, blue) was expected")
    return fields


def common_sizes(checkpoint: Checkpoint, fields: Fields) -> dict[str, Any]:
    """The arguments of `VisionConfig` that both families store alike."""
    image = Fields(checkpoint.image_processor or {}, checkpoint.path / "preprocessor_config.json")
    return {
        "num_layers": fields.integer("depth", 32),
        "num_heads": fields.integer("num_heads", 16),
        "patch_size": fields.integer("patch_size", 14),
        "temporal_patch_size": fields.integer("temporal_patch_size", 2),
        "merge_size": fields.integer("spatial_merge_size", 2),
        "image_mean": image.numbers("image_mean", CLIP_MEAN),
        "image_std": image.numbers("image_std", CLIP_STD),
    }
