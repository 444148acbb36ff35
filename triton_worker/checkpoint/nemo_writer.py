"""Writes a NeMo 2.0 checkpoint directory from a Hugging Face checkpoint of Qwen2.5-VL.

Names and layouts are those of NeMo's own importer (nemo.collections.vlm.qwen2vl) and of megatron-core's torch_dist
format: layers stacked along a first dimension, query, key and value rows interleaved by group, gate before up. One
chunk is one layer, so that a reader can take what it needs, and no more than a layer is ever in memory.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.errors import CheckpointError
from triton_worker.checkpoint.fiddle_graph import fiddle_document, plain_document
from triton_worker.checkpoint.nemo_context import TOKENIZER_DIRECTORY, model_yaml_defaults, trainer_context
from triton_worker.models.qwen2_5_vl.config import Qwen25VLConfig
from triton_worker.models.qwen2_5_vl.config_huggingface import config_from_huggingface

_LANGUAGE = "module.language_model."
_VISION = "module.vision_model."
_PROJECTION = "module.vision_projection.encoder."
_DATA_FILE = "__0_0.distcp"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "chat_template.json", "preprocessor_config.json"),
)


@dataclass(frozen=True)
class Chunk:
    """Part of a tensor: where it lies in the whole, and its values."""

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    values: Tensor


def write_nemo_checkpoint(source: Checkpoint, directory: Path) -> None:
    """Write `source`, an opened Hugging Face checkpoint, to `directory` as NeMo 2.0 stores it; dtypes stay.

    Raises CheckpointError when the directory holds anything, or when NeMo 2.0 has no place for what the model needs.
    """
    if directory.exists() and any(directory.iterdir()):
        raise CheckpointError(f"{directory} is not empty; give a directory that does not exist yet.")
    config = config_from_huggingface(source)
    _check_storable(source.path, config)
    weights = _HuggingFaceWeights(source)
    (directory / "weights").mkdir(parents=True)
    with (directory / "weights" / _DATA_FILE).open("wb") as file:
        table = _DataFile(file)
        for chunk in _chunks(weights, config):
            table.add_tensor(chunk)
        for name in _extra_state_names(config):
            table.add_object(name, [torch.empty(0, dtype=torch.uint8)])
    weights.check_all_read(config.text.tied_embeddings)
    (directory / "weights" / ".metadata").write_bytes(pickle.dumps(table.metadata()))
    torch.save(_common_state(), directory / "weights" / "common.pt")
    _write_context(directory / "context", source, config, weights.dtype)
    # Last, as megatron-core does: without it a checkpoint counts as unfinished.
    backends = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    backends |= {"common_backend": "torch", "common_backend_version": 1}
    (directory / "weights" / "metadata.json").write_text(json.dumps(backends), encoding="utf-8")


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


class _DataFile:
    """A .distcp file being filled, and the table of what lies where in it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._tensors: dict[str, TensorStorageMetadata] = {}
        self._objects: dict[str, BytesStorageMetadata] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}

    def add_tensor(self, chunk: Chunk) -> None:
        properties = TensorProperties(dtype=chunk.values.dtype)
        entry = self._tensors.setdefault(chunk.name, TensorStorageMetadata(properties, torch.Size(chunk.shape), []))
        offsets = torch.Size(chunk.offsets)
        entry.chunks.append(ChunkStorageMetadata(offsets, chunk.values.shape))
        # A view would be saved with all of its storage.
        self._places[MetadataIndex(chunk.name, offsets)] = self._append(chunk.values.clone().contiguous())

    def add_object(self, name: str, value: Any) -> None:
        self._objects[name] = BytesStorageMetadata()
        self._places[MetadataIndex(name)] = self._append(value)

    def metadata(self) -> Metadata:
        # Without a checkpoint_id, which would be the path on this machine.
        entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {**self._tensors, **self._objects}
        return Metadata(entries, storage_data=self._places, storage_meta=StorageMeta())

    def _append(self, value: Any) -> _StorageInfo:
        archive = io.BytesIO()
        torch.save(value, archive)
        start = self._file.tell()
        self._file.write(archive.getvalue())
        return _StorageInfo(_DATA_FILE, start, self._file.tell() - start)


class _HuggingFaceWeights:
    """The source's tensors, under the names of transformers 4 or of 5, and which of them were read."""

    def __init__(self, source: Checkpoint) -> None:
        self._reader = source.weights
        nested = "model.language_model.embed_tokens.weight" in self._reader.names
        self.text, self.vision = ("model.language_model.", "model.visual.") if nested else ("model.", "visual.")
        self._read: set[str] = set()

    @property
    def dtype(self) -> torch.dtype:
        return self._reader.dtype(f"{self.text}embed_tokens.weight")

    def read(self, name: str) -> Tensor:
        if name not in self._reader.names:
            raise CheckpointError(f"{self._reader.file_of(name)} lists no tensor {name!r}.")
        self._read.add(name)
        return self._reader.read(name)

    def check_all_read(self, tied: bool) -> None:
        left = {name for name in self._reader.names if name not in self._read and not name.endswith(".inv_freq")}
        left -= {"lm_head.weight"} if tied else set()
        if left:
            raise CheckpointError(f"{self._reader.file_of(min(left))} holds {min(left)!r}, which Qwen2.5-VL has not.")


def _chunks(weights: _HuggingFaceWeights, config: Qwen25VLConfig) -> Iterator[Chunk]:
    yield _whole(f"{_LANGUAGE}embedding.word_embeddings.weight", weights.read(f"{weights.text}embed_tokens.weight"))
    for index in range(config.text.num_layers):
        yield from _decoder_layer(weights, config, index)
    yield _whole(f"{_LANGUAGE}decoder.final_layernorm.weight", weights.read(f"{weights.text}norm.weight"))
    if not config.text.tied_embeddings:
        yield _whole(f"{_LANGUAGE}output_layer.weight", weights.read("lm_head.weight"))
    yield _whole(f"{_VISION}conv1.weight", weights.read(f"{weights.vision}patch_embed.proj.weight"))
    for index in range(config.vision.num_layers):
        yield from _vision_layer(weights, config, index)
    yield _whole(f"{_VISION}decoder.final_layernorm.weight", weights.read(f"{weights.vision}merger.ln_q.weight"))
    for theirs, ours in (("0", "linear_fc1"), ("2", "linear_fc2")):
        for kind in ("weight", "bias"):
            values = weights.read(f"{weights.vision}merger.mlp.{theirs}.{kind}")
            yield _whole(f"{_PROJECTION}{ours}.{kind}", values)


def _decoder_layer(weights: _HuggingFaceWeights, config: Qwen25VLConfig, index: int) -> Iterator[Chunk]:
    source, layers = f"{weights.text}layers.{index}.", config.text.num_layers
    target = f"{_LANGUAGE}decoder.layers."
    norms = {"self_attention.linear_qkv": "input_layernorm", "mlp.linear_fc1": "post_attention_layernorm"}
    for module, norm in norms.items():
        yield _stacked(f"{target}{module}.layer_norm_weight", layers, index, weights.read(f"{source}{norm}.weight"))
    for kind in ("weight", "bias"):
        parts = [weights.read(f"{source}self_attn.{part}_proj.{kind}") for part in "qkv"]
        grouped = _grouped(parts, config.text.num_kv_heads)
        yield _stacked(f"{target}self_attention.linear_qkv.{kind}", layers, index, grouped)
    output = weights.read(f"{source}self_attn.o_proj.weight")
    yield _stacked(f"{target}self_attention.linear_proj.weight", layers, index, output)
    halves = [weights.read(f"{source}mlp.{half}_proj.weight") for half in ("gate", "up")]
    yield from _gated(f"{target}mlp.linear_fc1.weight", layers, index, halves)
    down = weights.read(f"{source}mlp.down_proj.weight")
    yield _stacked(f"{target}mlp.linear_fc2.weight", layers, index, down)


def _vision_layer(weights: _HuggingFaceWeights, config: Qwen25VLConfig, index: int) -> Iterator[Chunk]:
    source, layers = f"{weights.vision}blocks.{index}.", config.vision.num_layers
    target = f"{_VISION}decoder.layers."
    for module, norm in (("self_attention.linear_qkv", "norm1"), ("mlp.linear_fc1", "norm2")):
        yield _stacked(f"{target}{module}.layer_norm_weight", layers, index, weights.read(f"{source}{norm}.weight"))
    for kind in ("weight", "bias"):
        parts = list(weights.read(f"{source}attn.qkv.{kind}").chunk(3))
        grouped = _grouped(parts, config.vision.num_heads)
        yield _stacked(f"{target}self_attention.linear_qkv.{kind}", layers, index, grouped)
        output = weights.read(f"{source}attn.proj.{kind}")
        yield _stacked(f"{target}self_attention.linear_proj.{kind}", layers, index, output)
        halves = [weights.read(f"{source}mlp.{half}_proj.{kind}") for half in ("gate", "up")]
        yield from _gated(f"{target}mlp.linear_fc1.{kind}", layers, index, halves)
        down = weights.read(f"{source}mlp.down_proj.{kind}")
        yield _stacked(f"{target}mlp.linear_fc2.{kind}", layers, index, down)


def _whole(name: str, values: Tensor) -> Chunk:
    return Chunk(name, tuple(values.shape), (0,) * values.ndim, values)


def _stacked(name: str, layers: int, index: int, values: Tensor) -> Chunk:
    """Layer `index` of the tensor that holds all layers."""
    return Chunk(name, (layers, *values.shape), (index, *(0,) * values.ndim), values[None])


def _gated(name: str, layers: int, index: int, halves: list[Tensor]) -> Iterator[Chunk]:
    """Gate and up as two chunks, one below the other."""
    rows, *columns = halves[0].shape
    for half, values in enumerate(halves):
        offsets = (index, half * rows, *(0 for _ in columns))
        yield Chunk(name, (layers, 2 * rows, *columns), offsets, values[None])


def _grouped(parts: list[Tensor], groups: int) -> Tensor:
    """Query, key and value rows in megatron's order: per group its query heads, its key head, its value head."""
    return torch.cat([torch.unflatten(part, 0, (groups, -1)) for part in parts], dim=1).flatten(0, 1)


def _extra_state_names(config: Qwen25VLConfig) -> Iterator[str]:
    """Transformer Engine's entries, which NeMo asks for when it loads. They hold nothing where FP8 is not used."""
    modules = ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")
    for tower, layers in ((_LANGUAGE, config.text.num_layers), (_VISION, config.vision.num_layers)):
        for module in modules:
            for index in range(layers):
                yield f"{tower}decoder.layers.{module}._extra_state/shard_{index}_{layers}"
        yield f"{tower}decoder.final_layernorm._extra_state/shard_0_1"
    for module in ("linear_fc1", "linear_fc2"):
        yield f"{_PROJECTION}{module}._extra_state/shard_0_1"


def _common_state() -> dict[str, Any]:
    """What a trainer that has not trained yet leaves in common.pt."""
    content = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    state: dict[str, Any] = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.4.0", "state_dict": {}}
    return state | {
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "content_metadata": content,
    }


def _write_context(directory: Path, source: Checkpoint, config: Qwen25VLConfig, dtype: torch.dtype) -> None:
    tokenizer = directory / TOKENIZER_DIRECTORY
    tokenizer.mkdir(parents=True)
    for name in _TOKENIZER_FILES:
        for origin in (source.tokenizer_directory, source.path):
            if (origin / name).is_file() and not (tokenizer / name).exists():
                shutil.copyfile(origin / name, tokenizer / name)
    context = trainer_context(config, dtype)
    (directory / "io.json").write_text(json.dumps(fiddle_document(context)), encoding="utf-8")
    model = model_yaml_defaults(plain_document(context.arguments["model"]))
    (directory / "model.yaml").write_text(yaml.safe_dump(model), encoding="utf-8")
