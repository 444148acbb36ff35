"""Qwen2-VL from one layout of checkpoints to another, tensor by tensor and bit for bit."""

from __future__ import annotations

from pathlib import Path

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.errors import CheckpointError
from triton_worker.checkpoint.safetensors_writer import SHARD_BYTES
from triton_worker.models import qwen2_vl
from triton_worker.models.interface import Progress
from triton_worker.models.qwen_vl import conversion_huggingface, conversion_nemo
from triton_worker.models.qwen_vl.conversion_huggingface import HuggingFaceForm
from triton_worker.models.qwen_vl.conversion_nemo import NemoForm

_NEMO_FORM = NemoForm(
    model_version="qwen2-vl",
    vision_class="Qwen2VLVisionConfig",
    vision_arguments={},
    vision_defaults={"gated_linear_unit": False, "normalization": "LayerNorm"},
)


def write_nemo(source: Checkpoint, directory: Path, progress: Progress | None = None) -> None:
    """Write `source` to `directory`, which must not exist yet; dtypes stay.

    Raises CheckpointError when `source` is damaged, or NeMo 2.0 has no place for what the model needs.
    """
    config = qwen2_vl.read_config(source)
    conversion_nemo.check_storable(source.path, config)
    conversion_nemo.write_nemo(source, directory, qwen2_vl, config, _NEMO_FORM, progress)


def write_huggingface(
    source: Checkpoint, directory: Path, progress: Progress | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `source` to `directory`, which must not exist yet; dtypes stay.

    Raises CheckpointError when `source` is damaged, its tokenizer does not fit the model, or config.json has no place
    for a size.
    """
    config = qwen2_vl.read_config(source)
    width, inner = config.vision.hidden_size, config.vision.intermediate_size
    if inner % width:
        raise CheckpointError(
            f"{source.path}: the vision tower's MLP is {inner} wide; Hugging Face stores it as a multiple of {width}."
        )
    vision = {
        "embed_dim": width,
        "hidden_act": "quick_gelu",
        "hidden_size": config.text.hidden_size,
        "mlp_ratio": inner // width,
    }
    form = HuggingFaceForm("Qwen2VL", "qwen2_vl", qwen2_vl.BLOCK_MODULES, vision)
    conversion_huggingface.write_huggingface(source, directory, qwen2_vl, config, form, progress, shard_bytes)
