"""Llama 3.2 Vision from one layout of checkpoints to another, tensor by tensor and bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.distributed_writer import Chunk
from triton_worker.checkpoint.safetensors_writer import SHARD_BYTES
from triton_worker.models import mllama
from triton_worker.models.conversion import huggingface, nemo
from triton_worker.models.conversion.source import Parameter, stored_dtype, stream_parameters
from triton_worker.models.decoder.weights_nemo import READ_ONLY_TOKENS
from triton_worker.models.interface import Progress
from triton_worker.models.megatron import grouped
from triton_worker.models.mllama.config import MllamaConfig
from triton_worker.models.mllama.conversion_context import (
    check_storable,
    extra_state,
    model_settings,
    nemo_context_of,
    picture_settings,
    yaml_defaults,
)
from triton_worker.models.mllama.prompts import TOKENIZER
from triton_worker.models.mllama.weights import HUB_NAMES, PATCHES, QKV, nemo_place, stack_size
from triton_worker.processing.tokenizer import Tokenizer


def write_nemo(source: Checkpoint, directory: Path, progress: Progress | None = None) -> None:
    """Write `source` to `directory`, which must not exist yet; dtypes stay.

    Raises CheckpointError when `source` is damaged, or NeMo 2.0 has no place for what the model needs.
    """
    config = mllama.read_config(source)
    check_storable(source.path, config)

    def write_tensors(add: nemo.AddChunk) -> None:
        def take(parameter: Parameter) -> None:
            if parameter.name.startswith("decoder."):
                for chunk in nemo.decoder_chunks(parameter, config.text):
                    add(chunk)
            elif parameter.name == "read_only_tokens":
                add(nemo.whole(READ_ONLY_TOKENS, parameter.values))
            else:
                add(_vision_chunk(parameter, config))

        stream_parameters(source, mllama, config, take, progress)

    context = nemo_context_of(config, stored_dtype(source), source.seq_length)
    nemo.write_checkpoint(source, directory, write_tensors, extra_state(config), context, yaml_defaults())


def write_huggingface(
    source: Checkpoint, directory: Path, progress: Progress | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `source` to `directory`, which must not exist yet; dtypes stay.

    Raises CheckpointError when `source` is damaged or its tokenizer does not fit the model.
    """
    config = mllama.read_config(source)
    tokenizer = Tokenizer(source.tokenizer_directory, TOKENIZER)

    def write_tensors(add: huggingface.AddTensor) -> None:
        embeddings: list[Tensor] = []

        def take(parameter: Parameter) -> None:
            if parameter.module == "decoder.embed_tokens":
                embeddings.append(parameter.values)  # here one tensor with those that are only read
            elif parameter.name == "read_only_tokens":
                add(HUB_NAMES.decoder.embedding, torch.cat((embeddings.pop(), parameter.values)))
            elif parameter.name.startswith("decoder."):
                for name, values in huggingface.decoder_tensors(parameter, config.text, HUB_NAMES.decoder):
                    add(name, values)
            else:
                _add_vision(add, parameter, config)

        stream_parameters(source, mllama, config, take, progress)

    huggingface.write_checkpoint(
        source,
        directory,
        tokenizer,
        write_tensors,
        model_settings(config, source, tokenizer),
        {"preprocessor_config.json": picture_settings(config.vision)},
        shard_bytes,
    )


def _vision_chunk(parameter: Parameter, config: MllamaConfig) -> Chunk:
    name, index = nemo_place(parameter.name)
    values = parameter.values
    if index is None:
        return nemo.whole(name, values)
    if parameter.name.endswith(QKV):
        values = grouped(list(values.chunk(3)), config.vision.num_heads)
    return nemo.stacked(name, stack_size(config.vision, parameter.name), index, values)


def _add_vision(add: huggingface.AddTensor, parameter: Parameter, config: MllamaConfig) -> None:
    names, values = HUB_NAMES.of_tower(parameter.name), parameter.values
    if parameter.name.endswith(PATCHES):
        values = torch.unflatten(values, 1, (3, config.vision.patch_size, config.vision.patch_size))
    for name, part in zip(names, values.chunk(len(names)), strict=True):
        add(name, part)
