"""The sizes of a Qwen2-VL model, whichever checkpoint they came from."""

from __future__ import annotations

from typing import Any

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.models.decoder.config import check_rules
from triton_worker.models.qwen_vl import config_huggingface, config_nemo
from triton_worker.models.qwen_vl.config import QwenVLConfig, VisionConfig, common_rules

_1P5B: dict[str, Any] = {
    "num_layers": 28, "hidden_size": 1536, "num_attention_heads": 12, "num_query_groups": 2,
    "ffn_hidden_size": 8960, "vocab_size": 151936,
}  # fmt: skip
_7B: dict[str, Any] = {
    "num_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_query_groups": 4,
    "ffn_hidden_size": 18944, "vocab_size": 152064,
}  # fmt: skip
_72B: dict[str, Any] = {
    "num_layers": 80, "hidden_size": 8192, "num_attention_heads": 64, "num_query_groups": 8,
    "ffn_hidden_size": 29568, "vocab_size": 152064, "layernorm_epsilon": 1e-5,
}  # fmt: skip

_PRESETS: config_nemo.Presets = {
    "Qwen2VLConfig2B": {**_1P5B, "share_embeddings_and_output_weights": True},
    "Qwen2VLConfig7B": _7B,
    "Qwen2VLConfig72B": _72B,
    "Qwen2Config1P5B": _1P5B,
    "Qwen2Config7B": _7B,
    "Qwen2Config72B": _72B,
}
"""By class, from nemo.collections.vlm.qwen2vl.model.qwen2vl and nemo.collections.llm.gpt.model.qwen2."""

Qwen2VLConfig = QwenVLConfig[VisionConfig]


def read_config(checkpoint: Checkpoint) -> Qwen2VLConfig:
    """Raises CheckpointError where the checkpoint lacks a size, or holds one that our model cannot have."""
    if checkpoint.layout == "nemo":
        file = checkpoint.path / "context" / "io.json"
        config = QwenVLConfig(config_nemo.read_text(checkpoint, _PRESETS), _vision_from_nemo(checkpoint))
    else:
        file = checkpoint.path / "config.json"
        config = QwenVLConfig(config_huggingface.read_text(checkpoint), _vision_from_huggingface(checkpoint))
    check_rules(common_rules(config), file)
    return config


def _vision_from_huggingface(checkpoint: Checkpoint) -> VisionConfig:
    fields = config_huggingface.vision_section(checkpoint, activation="quick_gelu")
    # Here hidden_size is the decoder's.
    size = fields.integer("embed_dim", 1280)
    return VisionConfig(
        **config_huggingface.common_sizes(checkpoint, fields),
        hidden_size=size,
        intermediate_size=size * fields.integer("mlp_ratio", 4),
    )


def _vision_from_nemo(checkpoint: Checkpoint) -> VisionConfig:
    fields = config_nemo.section(checkpoint, "vision_transformer_config", {})
    return VisionConfig(
        **config_nemo.common_sizes(checkpoint, fields), intermediate_size=fields.integer("ffn_hidden_size", 5120)
    )
