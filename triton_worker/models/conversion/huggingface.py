"""Writes Hugging Face checkpoints: config.json in the form of transformers 4, which 5 reads too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.safetensors_writer import SHARD_BYTES, SafetensorsWriter
from triton_worker.checkpoint.tokenizer_files import copy_tokenizer_files
from triton_worker.models.conversion.source import Parameter, qkv_parts
from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.decoder.weights_huggingface import CROSS_LAYER_MODULES, GATES, LAYER_MODULES, DecoderNames
from triton_worker.processing.tokenizer import Tokenizer

AddTensor = Callable[[str, Tensor], None]


def write_checkpoint(
    source: Checkpoint,
    directory: Path,
    tokenizer: Tokenizer,
    write_tensors: Callable[[AddTensor], None],
    model_settings: dict[str, Any],
    processor_settings: Mapping[str, dict[str, Any]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `source` to `directory`, which must not exist yet. `write_tensors` adds each tensor by its name.

    `processor_settings`: by file, for a checkpoint without that file. Raises CheckpointError when `source` is damaged.
    """
    directory.mkdir(parents=True)
    writer = SafetensorsWriter(directory, shard_bytes)
    write_tensors(writer.add)
    writer.finish()
    copy_tokenizer_files(source, directory)
    defaults = {**processor_settings, "generation_config.json": {"eos_token_id": sorted(tokenizer.end_token_ids)}}
    for name, content in defaults.items():
        if not (directory / name).exists():
            _write_json(directory / name, content)
    # Last: without it the directory is no checkpoint.
    _write_json(directory / "config.json", model_settings)


def decoder_tensors(parameter: Parameter, text: DecoderConfig, names: DecoderNames) -> Iterator[tuple[str, Tensor]]:
    """A parameter of the decoder, as the tensors that ours is made of."""
    ends = {
        "decoder.embed_tokens.weight": names.embedding,
        "decoder.norm.weight": names.norm,
        "decoder.output.weight": names.output,
    }
    if parameter.name in ends:
        yield ends[parameter.name], parameter.values
        return
    if parameter.kind in GATES:
        yield f"{names.layer(parameter.layer)}.{GATES[parameter.kind]}", parameter.values
        return
    kind = CROSS_LAYER_MODULES if parameter.layer in text.cross_attention_layers else LAYER_MODULES
    modules, query_rows = kind[parameter.in_layer], text.num_heads * text.head_dim
    three = len(modules) == 3
    parts = qkv_parts(parameter.values, query_rows) if three else parameter.values.chunk(len(modules))
    for module, part in zip(modules, parts, strict=True):
        yield f"{names.layer(parameter.layer)}.{module}.{parameter.kind}", part


def decoder_settings(text: DecoderConfig, seq_length: int) -> dict[str, Any]:
    """The settings that every family's decoder has, by transformers' names."""
    return {
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": seq_length,
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers,
        "num_key_value_heads": text.num_kv_heads,
        "rms_norm_eps": text.norm_eps,
        "rope_theta": text.rope_theta,
        "tie_word_embeddings": text.tied_embeddings,
        "vocab_size": text.vocab_size,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
