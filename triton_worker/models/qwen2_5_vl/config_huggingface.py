"""Qwen2.5-VL's sizes from the config.json of a Hugging Face checkpoint."""

from __future__ import annotations

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.fields import Fields
from triton_worker.models.qwen2_5_vl.config import (
    CLIP_MEAN,
    CLIP_STD,
    Qwen25VLConfig,
    TextConfig,
    VisionConfig,
    check_config,
)


def config_from_huggingface(checkpoint: Checkpoint) -> Qwen25VLConfig:
    """Reads both the flat config.json of transformers 4 and the nested one of 5. Raises CheckpointError."""
    file = checkpoint.path / "config.json"
    top = Fields(checkpoint.config, file)
    text = top.section("text_config") if top.has("text_config") else top
    # transformers 4 and 5 keep the flag at the top; some versions between kept it with the text.
    tied = top.flag("tie_word_embeddings", False) or text.flag("tie_word_embeddings", False)
    image = Fields(checkpoint.image_processor or {}, checkpoint.path / "preprocessor_config.json")
    config = Qwen25VLConfig(_text(text, tied), _vision(top.section("vision_config"), image))
    return check_config(config, file)


def _text(fields: Fields, tied: bool) -> TextConfig:
    if fields.text("hidden_act", "silu") != "silu":
        raise fields.error("hidden_act", "only 'silu' is supported")
    if fields.flag("use_sliding_window", False):
        raise fields.error("use_sliding_window", "only full attention is supported")
    rope = fields.section("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    kind = "rope_type" if rope.has("rope_type") else "type"
    if rope.text(kind, "mrope") not in ("mrope", "default"):
        raise rope.error(kind, "only 'mrope' and 'default' are supported")
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    return TextConfig(
        num_layers=fields.integer("num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=fields.integer("head_dim", max(1, hidden_size // num_heads)),
        intermediate_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        norm_eps=fields.number("rms_norm_eps", 1e-5),
        rope_theta=rope.number("rope_theta", fields.number("rope_theta", 1000000.0)),
        mrope_section=rope.integers("mrope_section", (16, 24, 24)),
        tied_embeddings=tied,
    )


def _vision(fields: Fields, image: Fields) -> VisionConfig:
    if fields.text("hidden_act", "silu") != "silu":
        raise fields.error("hidden_act", "only 'silu' is supported")
    if fields.integer("in_channels", 3) != 3:
        raise fields.error("in_channels", "3 (red, green, blue) was expected")
    return VisionConfig(
        num_layers=fields.integer("depth", 32),
        hidden_size=fields.integer("hidden_size"),
        num_heads=fields.integer("num_heads", 16),
        intermediate_size=fields.integer("intermediate_size", 3420),
        full_attention_layers=fields.integers("fullatt_block_indexes", (7, 15, 23, 31)),
        patch_size=fields.integer("patch_size", 14),
        temporal_patch_size=fields.integer("temporal_patch_size", 2),
        merge_size=fields.integer("spatial_merge_size", 2),
        window_size=fields.integer("window_size", 112),
        image_mean=image.numbers("image_mean", CLIP_MEAN),
        image_std=image.numbers("image_std", CLIP_STD),
    )
