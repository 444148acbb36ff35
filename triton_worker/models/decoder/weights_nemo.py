"""Fills a decoder from the tensors of a NeMo 2.0 checkpoint (megatron-core's GPTModel)."""

from __future__ import annotations

import re
from collections.abc import Callable

from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.megatron import LANGUAGE, PROJECTION, VISION, Layer, ungrouped
from triton_worker.models.weights import WeightFiller
from triton_worker.parallel import DecoderShard, Ranks, heads_to_rows

_LAYERS = f"{LANGUAGE}decoder.layers."
_NUMBERED = re.compile(re.escape(_LAYERS) + r"(\d+)\.")
WORD_EMBEDDINGS = f"{LANGUAGE}embedding.word_embeddings.weight"
_OUTPUT = f"{LANGUAGE}output_layer.weight"
_NORM = f"{LANGUAGE}decoder.final_layernorm.weight"


def fill_decoder(weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ranks: Ranks) -> None:
    """Fill this rank's part. Raises CheckpointError where a tensor is missing or not of its shape."""
    _fill_ends(weights, text, shard, ranks)
    for place, index in enumerate(shard.layers):
        layer = Layer(weights, _LAYERS, index, text.num_layers)
        _fill_layer(layer, weights, text, shard, f"decoder.layers.{place}")


def is_elsewhere(text: DecoderConfig, shard: DecoderShard, ranks: Ranks) -> Callable[[str], bool]:
    """Whether a tensor of the model belongs to another stage, by name."""

    def elsewhere(name: str) -> bool:
        match = _NUMBERED.match(name)
        if match is not None:
            index = int(match[1])
            return index < text.num_layers and index not in shard.layers
        return (not ranks.is_first_stage and name.startswith((WORD_EMBEDDINGS, VISION, PROJECTION))) or (
            not ranks.is_last_stage and name.startswith((_NORM, _OUTPUT))
        )

    return elsewhere


def _fill_ends(weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ranks: Ranks) -> None:
    """Embedding, output and the norm before it."""
    shape = (text.vocab_size, text.hidden_size)
    if ranks.is_first_stage:
        weights.fill("decoder.embed_tokens.weight", weights.read(WORD_EMBEDDINGS, *shape, rows=shard.vocabulary))
    if not ranks.is_last_stage:
        return
    weights.fill("decoder.norm.weight", weights.read(_NORM, text.hidden_size))
    if not (text.tied_embeddings and ranks.is_first_stage):
        output = WORD_EMBEDDINGS if text.tied_embeddings else _OUTPUT
        weights.fill("decoder.output.weight", weights.read(output, *shape, rows=shard.vocabulary))


def _fill_layer(layer: Layer, weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ours: str) -> None:
    hidden, heads, inner = text.hidden_size, text.num_heads * text.head_dim, text.intermediate_size
    weights.fill(f"{ours}.input_norm.weight", layer.read("self_attention.linear_qkv.layer_norm_weight", hidden))
    _fill_qkv(layer, weights, text, shard, f"{ours}.qkv_proj")
    output_columns = heads_to_rows(shard.query_heads, text.head_dim)
    output = layer.read("self_attention.linear_proj.weight", hidden, heads, columns=output_columns)
    weights.fill(f"{ours}.output_proj.weight", output)
    weights.fill(f"{ours}.mlp_norm.weight", layer.read("mlp.linear_fc1.layer_norm_weight", hidden))
    gate_up = layer.read_gated("mlp.linear_fc1.weight", inner, hidden, rows=shard.intermediate)
    weights.fill(f"{ours}.mlp.gate_up_proj.weight", *gate_up)
    down = layer.read("mlp.linear_fc2.weight", hidden, inner, columns=shard.intermediate)
    weights.fill(f"{ours}.mlp.down_proj.weight", down)


def _fill_qkv(layer: Layer, weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ours: str) -> None:
    rows = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    group_heads = text.num_heads // text.num_kv_heads
    # A group is its query heads, its key head and its value head; a rank that holds part of one reads all of it.
    group_rows = heads_to_rows(shard.kv_heads, rows // text.num_kv_heads)
    first = shard.query_heads.start - shard.kv_heads.start * group_heads
    own = heads_to_rows(range(first, first + len(shard.query_heads)), text.head_dim)
    shapes: dict[str, tuple[int, ...]] = {"weight": (rows, text.hidden_size)}
    if text.qkv_bias:
        shapes["bias"] = (rows,)
    for kind, shape in shapes.items():
        stored = layer.read(f"self_attention.linear_qkv.{kind}", *shape, rows=group_rows)
        query, key, value = ungrouped(stored, group_heads * len(shard.kv_heads), len(shard.kv_heads))
        weights.fill(f"{ours}.{kind}", query[own.start : own.stop], key, value)
