"""The sizes of a Qwen2.5-VL model, whichever checkpoint they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.models.decoder.config import check_rules
from triton_worker.models.qwen_vl import config_huggingface, config_nemo
from triton_worker.models.qwen_vl.config import QwenVLConfig, common_rules
from triton_worker.models.qwen_vl.config import VisionConfig as CommonVisionConfig

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
"""By size, from nemo.collections.llm.gpt.model.qwen2; the vision tower's below from nemo.collections.vlm.qwen2vl."""
_VISION_PRESETS: dict[str, dict[str, Any]] = {"32B": {"ffn_hidden_size": 3456}, "72B": {"ffn_hidden_size": 3456}}


def _by_class(presets: dict[str, dict[str, Any]]) -> config_nemo.Presets:
    """By the class of the whole model, and by that of its language model."""
    return {
        f"{prefix}{size}": preset for size, preset in presets.items() for prefix in ("Qwen25VLConfig", "Qwen25Config")
    }


@dataclass(frozen=True, kw_only=True)
class VisionConfig(CommonVisionConfig):
    """`window_size` is in pixels; blocks not in `full_attention_layers` attend within windows."""

    full_attention_layers: tuple[int, ...]
    window_size: int = 112

    @property
    def window_side(self) -> int:
        """Picture embeddings along a side of a window."""
        return self.window_size // self.picture_unit


Qwen25VLConfig = QwenVLConfig[VisionConfig]


def read_config(checkpoint: Checkpoint) -> Qwen25VLConfig:
    """Raises CheckpointError where the checkpoint lacks a size, or holds one that our model cannot have."""
    if checkpoint.layout == "nemo":
        return config_from_nemo(checkpoint)
    return config_from_huggingface(checkpoint)


def config_from_huggingface(checkpoint: Checkpoint) -> Qwen25VLConfig:
    """Raises CheckpointError as above."""
    fields = config_huggingface.vision_section(checkpoint, activation="silu")
    vision = VisionConfig(
        **config_huggingface.common_sizes(checkpoint, fields),
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size", 3420),
        full_attention_layers=fields.integers("fullatt_block_indexes", (7, 15, 23, 31)),
        window_size=fields.integer("window_size", 112),
    )
    return _checked(QwenVLConfig(config_huggingface.read_text(checkpoint), vision), checkpoint.path / "config.json")


def config_from_nemo(checkpoint: Checkpoint) -> Qwen25VLConfig:
    """Raises CheckpointError as above."""
    fields = config_nemo.section(checkpoint, "vision_transformer_config", _by_class(_VISION_PRESETS))
    vision = VisionConfig(
        **config_nemo.common_sizes(checkpoint, fields),
        intermediate_size=fields.integer("ffn_hidden_size", 3420),
        full_attention_layers=fields.integers("fullatt_block_indexes", (7, 15, 23, 31)),
    )
    text = config_nemo.read_text(checkpoint, _by_class(_PRESETS))
    return _checked(QwenVLConfig(text, vision), checkpoint.path / "context" / "io.json")


def _checked(config: Qwen25VLConfig, file: Path) -> Qwen25VLConfig:
    vision = config.vision
    rules = (
        *common_rules(config),
        (all(layer < vision.num_layers for layer in vision.full_attention_layers), "fullatt_block_indexes below the "
         f"number of vision layers ({vision.num_layers})"),
        (vision.window_side > 0, f"a vision window of at least {vision.picture_unit} pixels"),
    )  # fmt: skip
    check_rules(rules, file)
    return config
