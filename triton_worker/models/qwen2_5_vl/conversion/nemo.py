"""Qwen2.5-VL as NeMo 2.0 stores it.

Names and layouts are those of NeMo's own importer (nemo.collections.vlm.qwen2vl): layers stacked along a first
dimension, query, key and value rows interleaved by group, gate before up. One chunk is one layer, so that a reader can
take what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from torch import Tensor

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.distributed_writer import Chunk, DistributedWriter
from triton_worker.checkpoint.errors import CheckpointError
from triton_worker.checkpoint.fiddle_graph import fiddle_document, plain_document
from triton_worker.checkpoint.tokenizer_files import copy_tokenizer_files
from triton_worker.models.interface import Progress
from triton_worker.models.qwen2_5_vl.config import Qwen25VLConfig
from triton_worker.models.qwen2_5_vl.conversion.nemo_context import (
    TOKENIZER_DIRECTORY,
    model_yaml_defaults,
    trainer_context,
)
from triton_worker.models.qwen2_5_vl.conversion.source import (
    Parameter,
    qkv_parts,
    read_config,
    stored_dtype,
    stream_parameters,
)

_LANGUAGE = "module.language_model."
_VISION = "module.vision_model."
_PROJECTION = "module.vision_projection.encoder."

_WHOLE = {
    "decoder.embed_tokens": f"{_LANGUAGE}embedding.word_embeddings",
    "decoder.norm": f"{_LANGUAGE}decoder.final_layernorm",
    "decoder.output": f"{_LANGUAGE}output_layer",
    "vision.patch_embed": f"{_VISION}conv1",
    "vision.merger.norm": f"{_VISION}decoder.final_layernorm",
    "vision.merger.up_proj": f"{_PROJECTION}linear_fc1",
    "vision.merger.down_proj": f"{_PROJECTION}linear_fc2",
}
# A layer's norm is stored with the projection behind it.
_NORMS = {
    "input_norm": "self_attention.linear_qkv.layer_norm",
    "attention_norm": "self_attention.linear_qkv.layer_norm",
    "mlp_norm": "mlp.linear_fc1.layer_norm",
}
_PROJECTIONS = {
    "qkv_proj": "self_attention.linear_qkv",
    "output_proj": "self_attention.linear_proj",
    "mlp.gate_up_proj": "mlp.linear_fc1",
    "mlp.down_proj": "mlp.linear_fc2",
}


def write_nemo(source: Checkpoint, directory: Path, progress: Progress | None = None) -> None:
    """Write `source` to `directory`, which must not exist yet; dtypes stay.

    Raises CheckpointError when `source` is damaged, or NeMo 2.0 has no place for what the model needs.
    """
    config = read_config(source)
    _check_storable(source.path, config)
    with DistributedWriter(directory / "weights") as weights:

        def take(parameter: Parameter) -> None:
            for chunk in _chunks(parameter, config):
                weights.add(chunk)

        stream_parameters(source, config, take, progress)
        _write_context(directory / "context", source, config)
        weights.finish(_extra_state_names(config))


def _check_storable(path: Path, config: Qwen25VLConfig) -> None:
    """Raise unless everything that NeMo 2.0 does not store has the value that NeMo gives it."""
    fixed = (
        ("mrope_section", config.text.mrope_section, (16, 24, 24)),
        ("head_dim", config.text.head_dim, 128),
        ("window_size", config.vision.window_size, 112),
    )
    for name, value, only in fixed:
        if value != only:
            raise CheckpointError(
                f"{path / 'config.json'}: {name} is {value}; NeMo 2.0 does not store it and always has {only}."
            )


def _chunks(parameter: Parameter, config: Qwen25VLConfig) -> Iterator[Chunk]:
    module, values = parameter.name.rpartition(".")[0], parameter.values
    if module == "vision.patch_embed":
        vision = config.vision
        values = values.view(-1, 3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    if module in _WHOLE:
        yield Chunk(f"{_WHOLE[module]}.{parameter.kind}", tuple(values.shape), (0,) * values.ndim, values)
        return
    of_decoder = parameter.name.startswith("decoder.")
    prefix = f"{_LANGUAGE if of_decoder else _VISION}decoder.layers."
    layers = config.text.num_layers if of_decoder else config.vision.num_layers
    place = parameter.in_layer
    if place in _NORMS:
        yield _stacked(f"{prefix}{_NORMS[place]}_{parameter.kind}", layers, parameter.layer, values)
        return
    name = f"{prefix}{_PROJECTIONS[place]}.{parameter.kind}"
    if place == "mlp.gate_up_proj":
        yield from _gated(name, layers, parameter.layer, values)
    elif place == "qkv_proj":
        yield _stacked(name, layers, parameter.layer, _grouped(values, config, of_decoder))
    else:
        yield _stacked(name, layers, parameter.layer, values)


def _stacked(name: str, layers: int, index: int, values: Tensor) -> Chunk:
    """Layer `index` of the tensor that holds all layers."""
    return Chunk(name, (layers, *values.shape), (index, *(0,) * values.ndim), values[None])


def _gated(name: str, layers: int, index: int, values: Tensor) -> Iterator[Chunk]:
    """Gate and up as two chunks, one below the other."""
    rows, *columns = values.shape
    for start, half in ((0, values[: rows // 2]), (rows // 2, values[rows // 2 :])):
        yield Chunk(name, (layers, rows, *columns), (index, start, *(0 for _ in columns)), half[None])


def _grouped(values: Tensor, config: Qwen25VLConfig, of_decoder: bool) -> Tensor:
    """Query, key and value rows in megatron's order: per group its query heads, its key head, its value head."""
    text, vision = config.text, config.vision
    groups = text.num_kv_heads if of_decoder else vision.num_heads
    query_rows = text.num_heads * text.head_dim if of_decoder else vision.hidden_size
    parts = qkv_parts(values, query_rows)
    return torch.cat([torch.unflatten(part, 0, (groups, -1)) for part in parts], dim=1).flatten(0, 1)


def _extra_state_names(config: Qwen25VLConfig) -> Iterator[str]:
    """Transformer Engine's entries, which NeMo asks for when it loads."""
    for tower, layers in ((_LANGUAGE, config.text.num_layers), (_VISION, config.vision.num_layers)):
        for module in _PROJECTIONS.values():
            for index in range(layers):
                yield f"{tower}decoder.layers.{module}._extra_state/shard_{index}_{layers}"
        yield f"{tower}decoder.final_layernorm._extra_state/shard_0_1"
    for module in ("linear_fc1", "linear_fc2"):
        yield f"{_PROJECTION}{module}._extra_state/shard_0_1"


def _write_context(directory: Path, source: Checkpoint, config: Qwen25VLConfig) -> None:
    copy_tokenizer_files(source, directory / TOKENIZER_DIRECTORY)
    context = trainer_context(config, stored_dtype(source), source.seq_length)
    (directory / "io.json").write_text(json.dumps(fiddle_document(context)), encoding="utf-8")
    model = model_yaml_defaults(plain_document(context.arguments["model"]))
    (directory / "model.yaml").write_text(yaml.safe_dump(model), encoding="utf-8")
