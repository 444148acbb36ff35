"""Fills a decoder from the tensors of a NeMo 2.0 checkpoint (megatron-core's GPTModel)."""

from __future__ import annotations

import re
from collections.abc import Callable

from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.megatron import LANGUAGE, PROJECTION, VISION, Layer, ungrouped
from triton_worker.models.weights import WeightFiller
from triton_worker.parallel import DecoderShard, Ranks, heads_to_rows

_LAYERS = f"{LANGUAGE}decoder.layers."
CROSS_LAYERS = f"{LANGUAGE}decoder.xattn_layers."
_NUMBERED = re.compile(rf"({re.escape(_LAYERS)}|{re.escape(CROSS_LAYERS)})(\d+)\.")
READ_ONLY_TOKENS = f"{LANGUAGE}learnable_embedding.weight"
CROSS_LAYER_MODULES = {
    "q_proj": "cross_attention.linear_q",
    "kv_proj": "cross_attention.linear_kv",
    "q_norm": "cross_attention.q_layernorm",
    "k_norm": "cross_attention.k_layernorm",
    "output_proj": "cross_attention.linear_proj",
}
"""The modules of a cross-attention layer by our names."""
CROSS_LAYER_NORM = "cross_attention.linear_q.layer_norm_weight"
GATES = {"attention_gate": "gate_attn", "mlp_gate": "gate_ffn"}
WORD_EMBEDDINGS = f"{LANGUAGE}embedding.word_embeddings.weight"
_OUTPUT = f"{LANGUAGE}output_layer.weight"
_NORM = f"{LANGUAGE}decoder.final_layernorm.weight"


def fill_decoder(weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ranks: Ranks) -> None:
    """Fill this rank's part. Raises CheckpointError where a tensor is missing or not of its shape."""
    _fill_ends(weights, text, shard, ranks)
    stacked = text.num_layers - len(text.cross_attention_layers)
    for place, index in enumerate(shard.layers):
        prefix, number = _stored_place(text, index)
        if prefix == _LAYERS:
            layer = Layer(weights, prefix, number, stacked)
            _fill_layer(layer, weights, text, shard, f"decoder.layers.{place}")
        else:
            layer = Layer(weights, prefix, number, None)
            _fill_cross_layer(layer, weights, text, shard, f"decoder.layers.{place}")


def is_elsewhere(text: DecoderConfig, shard: DecoderShard, ranks: Ranks) -> Callable[[str], bool]:
    """Whether a tensor of the model belongs to another stage, by name."""
    others = {_stored_place(text, index) for index in range(text.num_layers) if index not in shard.layers}

    def elsewhere(name: str) -> bool:
        match = _NUMBERED.match(name)
        if match is not None:
            return (match[1], int(match[2])) in others
        first = (WORD_EMBEDDINGS, READ_ONLY_TOKENS, VISION, PROJECTION)
        return (not ranks.is_first_stage and name.startswith(first)) or (
            not ranks.is_last_stage and name.startswith((_NORM, _OUTPUT))
        )

    return elsewhere


def _stored_place(text: DecoderConfig, index: int) -> tuple[str, int]:
    """Under which prefix a layer is and its number there."""
    return CROSS_LAYERS if index in text.cross_attention_layers else _LAYERS, text.self_attention_layers_before(index)


def _fill_ends(weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ranks: Ranks) -> None:
    """Embedding, output and the norm before it."""
    shape = (text.vocab_size, text.hidden_size)
    if ranks.is_first_stage:
        weights.fill("decoder.embed_tokens.weight", weights.read(WORD_EMBEDDINGS, *shape, rows=shard.vocabulary))
        if text.read_only_tokens:
            read_only = weights.read(READ_ONLY_TOKENS, text.read_only_tokens, text.hidden_size)
            weights.fill("read_only_tokens", read_only)
    if not ranks.is_last_stage:
        return
    weights.fill("decoder.norm.weight", weights.read(_NORM, text.hidden_size))
    if not (text.tied_embeddings and ranks.is_first_stage):
        output = WORD_EMBEDDINGS if text.tied_embeddings else _OUTPUT
        weights.fill("decoder.output.weight", weights.read(output, *shape, rows=shard.vocabulary))


def _fill_layer(layer: Layer, weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ours: str) -> None:
    hidden, heads = text.hidden_size, text.num_heads * text.head_dim
    weights.fill(f"{ours}.input_norm.weight", layer.read("self_attention.linear_qkv.layer_norm_weight", hidden))
    _fill_qkv(layer, weights, text, shard, f"{ours}.qkv_proj")
    output_columns = heads_to_rows(shard.query_heads, text.head_dim)
    output = layer.read("self_attention.linear_proj.weight", hidden, heads, columns=output_columns)
    weights.fill(f"{ours}.output_proj.weight", output)
    _fill_mlp(layer, weights, text, shard, ours)


def _fill_cross_layer(layer: Layer, weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ours: str) -> None:
    hidden, heads = text.hidden_size, text.num_heads * text.head_dim
    kv_rows, groups = 2 * text.num_kv_heads * text.head_dim, len(shard.kv_heads)
    own_heads = heads_to_rows(shard.query_heads, text.head_dim)
    weights.fill(f"{ours}.input_norm.weight", layer.read(CROSS_LAYER_NORM, hidden))
    query = layer.read("cross_attention.linear_q.weight", heads, hidden, rows=own_heads)
    weights.fill(f"{ours}.q_proj.weight", query)
    own_groups = heads_to_rows(shard.kv_heads, 2 * text.head_dim)
    stored = layer.read("cross_attention.linear_kv.weight", kv_rows, hidden, rows=own_groups)
    weights.fill(f"{ours}.kv_proj.weight", *ungrouped(stored, 0, groups))
    for name in ("q_norm", "k_norm"):
        weights.fill(f"{ours}.{name}.weight", layer.read(f"{CROSS_LAYER_MODULES[name]}.weight", text.head_dim))
    output = layer.read("cross_attention.linear_proj.weight", hidden, heads, columns=own_heads)
    weights.fill(f"{ours}.output_proj.weight", output)
    for name, gate in GATES.items():
        weights.fill(f"{ours}.{name}", layer.read(gate, 1))
    _fill_mlp(layer, weights, text, shard, ours)


def _fill_mlp(layer: Layer, weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ours: str) -> None:
    hidden, inner = text.hidden_size, text.intermediate_size
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
