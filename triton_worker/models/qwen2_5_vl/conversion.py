"""Qwen2.5-VL from one layout of checkpoints to another, tensor by tensor and bit for bit."""

from __future__ import annotations

from pathlib import Path

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.safetensors_writer import SHARD_BYTES
from triton_worker.models import qwen2_5_vl
from triton_worker.models.interface import Progress
from triton_worker.models.qwen_vl import conversion_huggingface, conversion_nemo
from triton_worker.models.qwen_vl.conversion_huggingface import HuggingFaceForm
from triton_worker.models.qwen_vl.conversion_nemo import NemoForm


def write_nemo(source: Checkpoint, directory: Path, progress: Progress | None = None) -> None:
    """Write `source` to `directory`, which must not exist yet; dtypes stay.

    Raises CheckpointError when `source` is damaged, or NeMo 2.0 has no place for what the model needs.
    """
    config = qwen2_5_vl.read_config(source)
    conversion_nemo.check_storable(source.path, config, ("window_size", config.vision.window_size, 112))
    form = NemoForm(
        model_version="qwen25-vl",
        vision_class="Qwen25VLVisionConfig",
        vision_arguments={"fullatt_block_indexes": list(config.vision.full_attention_layers)},
        vision_defaults={"gated_linear_unit": True, "normalization": "RMSNorm"},
    )
    conversion_nemo.write_nemo(source, directory, qwen2_5_vl, config, form, progress)


def write_huggingface(
    source: Checkpoint, directory: Path, progress: Progress | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `source` to `directory`, which must not exist yet; dtypes stay.

    Raises CheckpointError when `source` is damaged or its tokenizer does not fit the model.
    """
    config = qwen2_5_vl.read_config(source)
    vision = {
        "fullatt_block_indexes": list(config.vision.full_attention_layers),
        "hidden_act": "silu",
        "hidden_size": config.vision.hidden_size,
        "intermediate_size": config.vision.intermediate_size,
        "out_hidden_size": config.text.hidden_size,
        "tokens_per_second": 2,
        "window_size": config.vision.window_size,
    }
    form = HuggingFaceForm("Qwen2_5_VL", "qwen2_5_vl", qwen2_5_vl.BLOCK_MODULES, vision)
    conversion_huggingface.write_huggingface(source, directory, qwen2_5_vl, config, form, progress, shard_bytes)
