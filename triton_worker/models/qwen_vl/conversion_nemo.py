"""Qwen2-VL and Qwen2.5-VL as NeMo 2.0 stores them: nemo.collections.vlm.qwen2vl."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.distributed_writer import Chunk
from triton_worker.checkpoint.errors import CheckpointError
from triton_worker.checkpoint.fiddle_graph import Config, Symbol
from triton_worker.models.conversion import nemo, nemo_context
from triton_worker.models.conversion.source import Parameter, stored_dtype, stream_parameters
from triton_worker.models.interface import Progress
from triton_worker.models.megatron import PROJECTION, VISION
from triton_worker.models.qwen_vl.config import QwenVLConfig, VisionConfig
from triton_worker.models.qwen_vl.config_nemo import HEAD_DIM, ROPE_SECTIONS
from triton_worker.models.registry import FamilyModule

_QWEN2VL = "nemo.collections.vlm.qwen2vl.model.base"
_ENDS = {
    "vision.patch_embed": f"{VISION}conv1",
    "vision.merger.norm": f"{VISION}decoder.final_layernorm",
    "vision.merger.up_proj": f"{PROJECTION}encoder.linear_fc1",
    "vision.merger.down_proj": f"{PROJECTION}encoder.linear_fc2",
}


@dataclass(frozen=True)
class NemoForm:
    """In what NeMo keeps the two families apart.

    model_version: the name that the model and, in model.yaml, its tower carry.
    vision_class, vision_arguments: what the tower's configuration is made with, beside the sizes.
    vision_defaults: of its fields that are not passed, those that differ between the families.
    """

    model_version: str
    vision_class: str
    vision_arguments: Mapping[str, Any]
    vision_defaults: Mapping[str, Any]


def check_storable(path: Path, config: QwenVLConfig[VisionConfig], *more: tuple[str, object, object]) -> None:
    """Raise unless everything that NeMo 2.0 does not store has the value that NeMo gives it.

    more: name, value and NeMo's value of what a family adds.
    """
    fixed = (
        ("mrope_section", config.text.rope_sections, ROPE_SECTIONS),
        ("head_dim", config.text.head_dim, HEAD_DIM),
        *more,
    )
    for name, value, only in fixed:
        if value != only:
            raise CheckpointError(
                f"{path / 'config.json'}: {name} is {value}; NeMo 2.0 does not store it and always has {only}."
            )


def write_nemo(
    source: Checkpoint,
    directory: Path,
    family: FamilyModule,
    config: QwenVLConfig[VisionConfig],
    form: NemoForm,
    progress: Progress | None,
) -> None:
    """Write `source` to `directory`, which must not exist yet; dtypes stay. Raises CheckpointError."""

    def write_tensors(add: nemo.AddChunk) -> None:
        def take(parameter: Parameter) -> None:
            for chunk in _chunks(parameter, config):
                add(chunk)

        stream_parameters(source, family, config, take, progress)

    model = _model(config, form, stored_dtype(source), source.seq_length)
    nemo.write_checkpoint(
        source,
        directory,
        write_tensors,
        _extra_state(config),
        nemo_context.trainer_context(model),
        _yaml_defaults(form),
    )


def _chunks(parameter: Parameter, config: QwenVLConfig[VisionConfig]) -> Iterator[Chunk]:
    vision, values = config.vision, parameter.values
    if parameter.module == "vision.patch_embed":
        values = values.view(-1, 3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    if parameter.module in _ENDS:
        yield nemo.whole(f"{_ENDS[parameter.module]}.{parameter.kind}", values)
    elif parameter.name.startswith("decoder."):
        yield from nemo.decoder_chunks(parameter, config.text)
    else:
        yield from nemo.vision_layer_chunks(parameter, vision.num_layers, vision.num_heads)


def _extra_state(config: QwenVLConfig[VisionConfig]) -> Iterator[str]:
    yield from nemo.decoder_extra_state(config.text)
    yield from nemo.vision_extra_state(config.vision.num_layers)
    for module in ("linear_fc1", "linear_fc2"):
        yield f"{PROJECTION}encoder.{module}._extra_state/shard_0_1"


def _model(config: QwenVLConfig[VisionConfig], form: NemoForm, dtype: torch.dtype, seq_length: int) -> Config:
    precision = nemo_context.precision_of(dtype)
    qwen2 = Symbol("nemo.collections.llm.gpt.model.qwen2", "Qwen2Config")
    merged = config.vision.unit_size
    projector = {
        "hidden_size": config.text.hidden_size,
        "ffn_hidden_size": merged,
        "projector_type": "mcore_mlp",
        "input_size": merged,
    }
    towers = {
        "language_transformer_config": nemo_context.language(qwen2, config.text, precision, seq_length),
        "vision_transformer_config": _vision(config.vision, form, precision),
        "vision_projection_config": nemo_context.projection(projector, precision),
        "vision_feature_layer": -1,
        "encoder_pipeline_model_parallel_size": 0,
        "encoder_tensor_model_parallel_size": 0,
    }
    arguments = {
        "config": Config(Symbol(_QWEN2VL, "Qwen2VLConfig"), {**nemo_context.parallelism(precision), **towers}),
        "model_version": form.model_version,
        "optim": nemo_context.optimizer(),
        "tokenizer": nemo_context.tokenizer(),
    }
    return Config(Symbol(_QWEN2VL, "Qwen2VLModel"), arguments)


def _vision(vision: VisionConfig, form: NemoForm, precision: dict[str, Any]) -> Config:
    arguments = {
        **precision,
        "num_layers": vision.num_layers,
        "hidden_size": vision.hidden_size,
        "num_attention_heads": vision.num_heads,
        "num_query_groups": vision.num_heads,
        "ffn_hidden_size": vision.intermediate_size,
        "kv_channels": vision.head_dim,
        "embed_dim": vision.hidden_size,
        **form.vision_arguments,
    }
    return Config(Symbol(_QWEN2VL, form.vision_class), arguments)


def _yaml_defaults(form: NemoForm) -> nemo_context.YamlDefaults:
    vision = {
        "add_class_token": False,
        "layernorm_epsilon": 1e-6,
        "model_version": form.model_version,
        "patch_dim": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        **form.vision_defaults,
    }
    return {
        "language_transformer_config": {**nemo_context.LANGUAGE_DEFAULTS, "add_qkv_bias": True},
        "vision_transformer_config": vision,
    }
