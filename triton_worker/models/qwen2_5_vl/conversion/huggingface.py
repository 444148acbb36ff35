"""Qwen2.5-VL as Hugging Face's hub stores it: config.json in the form of transformers 4, which 5 reads too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.safetensors_writer import SHARD_BYTES, SafetensorsWriter
from triton_worker.checkpoint.tokenizer_files import copy_tokenizer_files
from triton_worker.models.interface import Progress
from triton_worker.models.qwen2_5_vl.config import Qwen25VLConfig, TextConfig, VisionConfig
from triton_worker.models.qwen2_5_vl.conversion.source import (
    Parameter,
    qkv_parts,
    read_config,
    stored_dtype,
    stream_parameters,
)
from triton_worker.processing.tokenizer import Tokenizer

_WHOLE = {
    "decoder.embed_tokens": "model.embed_tokens",
    "decoder.norm": "model.norm",
    "decoder.output": "lm_head",
    "vision.patch_embed": "visual.patch_embed.proj",
    "vision.merger.norm": "visual.merger.ln_q",
    "vision.merger.up_proj": "visual.merger.mlp.0",
    "vision.merger.down_proj": "visual.merger.mlp.2",
}
_DECODER = {
    "input_norm": ("input_layernorm",),
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output_proj": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
_VISION = {
    "attention_norm": ("norm1",),
    "qkv_proj": ("attn.qkv",),
    "output_proj": ("attn.proj",),
    "mlp_norm": ("norm2",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}

# The hub's preprocessor_config.json of every Qwen2.5-VL, for checkpoints that come without one, as NeMo's do.
_MIN_PIXELS, _MAX_PIXELS = 3136, 12845056


def write_huggingface(
    source: Checkpoint, directory: Path, progress: Progress | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `source` to `directory`, which must not exist yet; dtypes stay.

    Raises CheckpointError when `source` is damaged or its tokenizer does not fit the model.
    """
    config = read_config(source)
    tokenizer = Tokenizer(source.tokenizer_directory)
    directory.mkdir(parents=True)
    writer = SafetensorsWriter(directory, shard_bytes)

    def take(parameter: Parameter) -> None:
        for name, values in _tensors(parameter, config):
            writer.add(name, values)

    stream_parameters(source, config, take, progress)
    writer.finish()
    copy_tokenizer_files(source, directory)
    if not (directory / "preprocessor_config.json").exists():
        _write_json(directory / "preprocessor_config.json", _picture_settings(config.vision))
    if not (directory / "generation_config.json").exists():
        _write_json(directory / "generation_config.json", {"eos_token_id": sorted(tokenizer.end_token_ids)})
    # Last: without it the directory is no checkpoint.
    _write_json(directory / "config.json", _model_settings(config, source, tokenizer))


def _tensors(parameter: Parameter, config: Qwen25VLConfig) -> Iterator[tuple[str, Tensor]]:
    module, values = parameter.name.rpartition(".")[0], parameter.values
    if module == "vision.patch_embed":
        vision = config.vision
        values = values.view(-1, 3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    if module in _WHOLE:
        yield f"{_WHOLE[module]}.{parameter.kind}", values
        return
    of_decoder = parameter.name.startswith("decoder.")
    prefix = f"model.layers.{parameter.layer}" if of_decoder else f"visual.blocks.{parameter.layer}"
    names = (_DECODER if of_decoder else _VISION)[parameter.in_layer]
    for name, part in zip(names, _parts(values, len(names), config.text), strict=True):
        yield f"{prefix}.{name}.{parameter.kind}", part


def _parts(values: Tensor, count: int, text: TextConfig) -> list[Tensor]:
    """The projections that our model has fused into one."""
    return qkv_parts(values, text.num_heads * text.head_dim) if count == 3 else list(values.chunk(count))


def _model_settings(config: Qwen25VLConfig, source: Checkpoint, tokenizer: Tokenizer) -> dict[str, Any]:
    text = config.text
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": str(stored_dtype(source)).removeprefix("torch."),
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": source.seq_length,
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers,
        "num_key_value_heads": text.num_kv_heads,
        "rms_norm_eps": text.norm_eps,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": list(text.mrope_section)},
        "rope_theta": text.rope_theta,
        "tie_word_embeddings": text.tied_embeddings,
        "use_sliding_window": False,
        "vocab_size": text.vocab_size,
        "eos_token_id": sorted(tokenizer.end_token_ids)[0],
        **tokenizer.picture_token_ids,
        "vision_config": _vision_settings(config.vision, text.hidden_size),
    }


def _vision_settings(vision: VisionConfig, output_size: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl",
        "depth": vision.num_layers,
        "fullatt_block_indexes": list(vision.full_attention_layers),
        "hidden_act": "silu",
        "hidden_size": vision.hidden_size,
        "in_channels": 3,
        "intermediate_size": vision.intermediate_size,
        "num_heads": vision.num_heads,
        "out_hidden_size": output_size,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.merge_size,
        "spatial_patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "tokens_per_second": 2,
        "window_size": vision.window_size,
    }


def _picture_settings(vision: VisionConfig) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "min_pixels": _MIN_PIXELS,
        "max_pixels": _MAX_PIXELS,
        "patch_size": vision.patch_size,
        "merge_size": vision.merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
