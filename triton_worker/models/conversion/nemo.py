"""Writes NeMo 2.0 checkpoints.

Names and layouts are those of NeMo's own importers: layers stacked along a first dimension, query, key and value rows
interleaved by group, gate before up. One chunk is one layer, so that a reader can take what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml
from torch import Tensor

from triton_worker.checkpoint.checkpoint import Checkpoint, read_json_object
from triton_worker.checkpoint.distributed_writer import Chunk, DistributedWriter
from triton_worker.checkpoint.fiddle_graph import Config, fiddle_document, plain_document
from triton_worker.checkpoint.tokenizer_files import copy_tokenizer_files
from triton_worker.models.conversion.nemo_context import TOKENIZER_DIRECTORY, YamlDefaults, with_defaults
from triton_worker.models.conversion.source import Parameter, qkv_parts
from triton_worker.models.decoder import weights_nemo
from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.megatron import LANGUAGE, NORMS, PROJECTIONS, VISION, grouped

_DECODER_ENDS = {
    "decoder.embed_tokens": f"{LANGUAGE}embedding.word_embeddings",
    "decoder.norm": f"{LANGUAGE}decoder.final_layernorm",
    "decoder.output": f"{LANGUAGE}output_layer",
}
_DECODER_LAYERS = f"{LANGUAGE}decoder.layers."
_VISION_LAYERS = f"{VISION}decoder.layers."
# Those with an entry of Transformer Engine's in each layer.
_STATEFUL = dict.fromkeys(PROJECTIONS.values())
_STATEFUL_IN_CROSS_LAYERS = (*weights_nemo.CROSS_LAYER_MODULES.values(), "mlp.linear_fc1", "mlp.linear_fc2")
_CROSS_LAYER_MODULES = {**PROJECTIONS, **weights_nemo.CROSS_LAYER_MODULES}

AddChunk = Callable[[Chunk], None]


def write_checkpoint(
    source: Checkpoint,
    directory: Path,
    write_tensors: Callable[[AddChunk], None],
    extra_state: Iterable[str],
    context: Config,
    yaml_defaults: YamlDefaults,
) -> None:
    """Write `source` to `directory`, which must not exist yet. `write_tensors` adds each chunk of each tensor.

    Raises CheckpointError when `source` is damaged; what was begun then counts as an unfinished save.
    """
    with DistributedWriter(directory / "weights") as weights:
        write_tensors(weights.add)
        _write_context(directory / "context", source, context, yaml_defaults)
        weights.finish(extra_state)


def whole(name: str, values: Tensor) -> Chunk:
    """A tensor in one piece."""
    return Chunk(name, tuple(values.shape), (0,) * values.ndim, values)


def decoder_chunks(parameter: Parameter, text: DecoderConfig) -> Iterator[Chunk]:
    """A parameter of the decoder."""
    if parameter.module in _DECODER_ENDS:
        yield whole(f"{_DECODER_ENDS[parameter.module]}.{parameter.kind}", parameter.values)
        return
    index = text.self_attention_layers_before(parameter.layer)
    if parameter.layer in text.cross_attention_layers:
        yield _cross_layer_chunk(parameter, index, text.num_kv_heads)
        return
    query_rows, layers = text.num_heads * text.head_dim, text.num_layers - len(text.cross_attention_layers)
    yield from _layer_chunks(parameter, index, _DECODER_LAYERS, layers, text.num_kv_heads, query_rows)


def vision_layer_chunks(parameter: Parameter, num_layers: int, num_heads: int) -> Iterator[Chunk]:
    """A parameter of a block of a vision tower."""
    query_rows = len(parameter.values) // 3
    yield from _layer_chunks(parameter, parameter.layer, _VISION_LAYERS, num_layers, num_heads, query_rows)


def decoder_extra_state(text: DecoderConfig) -> Iterator[str]:
    """Transformer Engine's entries, which NeMo asks for when it loads."""
    yield from _block_extra_state(LANGUAGE, text.num_layers - len(text.cross_attention_layers))
    for index in text.cross_attention_layers:
        layer = f"{weights_nemo.CROSS_LAYERS}{text.self_attention_layers_before(index)}"
        yield from (f"{layer}.{module}._extra_state/shard_0_1" for module in _STATEFUL_IN_CROSS_LAYERS)


def vision_extra_state(num_layers: int) -> Iterator[str]:
    """The same of a vision tower."""
    yield from _block_extra_state(VISION, num_layers)


def _layer_chunks(
    parameter: Parameter, index: int, prefix: str, layers: int, num_groups: int, query_rows: int
) -> Iterator[Chunk]:
    place, values = parameter.in_layer, parameter.values
    if place in NORMS:
        yield stacked(f"{prefix}{NORMS[place]}_{parameter.kind}", layers, index, values)
        return
    name = f"{prefix}{PROJECTIONS[place]}.{parameter.kind}"
    if place == "mlp.gate_up_proj":
        yield from _gated(name, layers, index, values)
    elif place == "qkv_proj":
        yield stacked(name, layers, index, grouped(qkv_parts(values, query_rows), num_groups))
    else:
        yield stacked(name, layers, index, values)


def _cross_layer_chunk(parameter: Parameter, index: int, num_groups: int) -> Chunk:
    """Cross-attention layers are apart, each tensor in one piece."""
    place, values = parameter.in_layer, parameter.values
    if place == "input_norm":
        name = weights_nemo.CROSS_LAYER_NORM
    elif place == "mlp_norm":
        name = f"{NORMS[place]}_{parameter.kind}"
    elif not place:
        name = weights_nemo.GATES[parameter.kind]
    else:
        name = f"{_CROSS_LAYER_MODULES[place]}.{parameter.kind}"
    if place == "kv_proj":
        values = grouped(list(values.chunk(2)), num_groups)
    return whole(f"{weights_nemo.CROSS_LAYERS}{index}.{name}", values)


def stacked(name: str, layers: int, index: int, values: Tensor) -> Chunk:
    """Layer `index` of the tensor that holds all layers."""
    return Chunk(name, (layers, *values.shape), (index, *(0,) * values.ndim), values[None])


def _gated(name: str, layers: int, index: int, values: Tensor) -> Iterator[Chunk]:
    """Gate and up as two chunks, one below the other."""
    rows, *columns = values.shape
    for start, half in ((0, values[: rows // 2]), (rows // 2, values[rows // 2 :])):
        yield Chunk(name, (layers, rows, *columns), (index, start, *(0 for _ in columns)), half[None])


def _block_extra_state(tower: str, layers: int) -> Iterator[str]:
    for module in _STATEFUL:
        for index in range(layers):
            yield f"{tower}decoder.layers.{module}._extra_state/shard_{index}_{layers}"
    yield f"{tower}decoder.final_layernorm._extra_state/shard_0_1"


def _write_context(directory: Path, source: Checkpoint, context: Config, yaml_defaults: YamlDefaults) -> None:
    copy_tokenizer_files(source, directory / TOKENIZER_DIRECTORY)
    _name_tokenizer_class(directory / TOKENIZER_DIRECTORY)
    (directory / "io.json").write_text(json.dumps(fiddle_document(context)), encoding="utf-8")
    model = with_defaults(plain_document(context.arguments["model"]), yaml_defaults)
    (directory / "model.yaml").write_text(yaml.safe_dump(model), encoding="utf-8")


def _name_tokenizer_class(directory: Path) -> None:
    """Say which class the tokenizer has, where its files do not.

    Beside a config.json transformers can tell from the model. Here there is none, and NeMo's transformers 4 also does
    not know the class that transformers 5 writes.
    """
    path = directory / "tokenizer_config.json"
    settings = read_json_object(path) if path.exists() else {}
    if settings.get("tokenizer_class") not in (None, "TokenizersBackend"):
        return
    # Vocabulary and merges alone are enough for Qwen only.
    complete = (directory / "tokenizer.json").exists()
    settings["tokenizer_class"] = "PreTrainedTokenizerFast" if complete else "Qwen2Tokenizer"
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
