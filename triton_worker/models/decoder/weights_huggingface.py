"""Fills a decoder from the tensors of a Hugging Face checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.weights import WeightFiller
from triton_worker.parallel import DecoderShard, Ranks, heads_to_rows

LAYER_MODULES = {
    "input_norm": ("input_layernorm",),
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output_proj": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""The modules of a layer by our names: those that it is made of, one below the other."""
CROSS_LAYER_MODULES = {
    **{name: LAYER_MODULES[name] for name in ("input_norm", "mlp_norm", "mlp.gate_up_proj", "mlp.down_proj")},
    "q_proj": ("cross_attn.q_proj",),
    "kv_proj": ("cross_attn.k_proj", "cross_attn.v_proj"),
    "q_norm": ("cross_attn.q_norm",),
    "k_norm": ("cross_attn.k_norm",),
    "output_proj": ("cross_attn.o_proj",),
}
"""The same of a cross-attention layer."""
GATES = {"attention_gate": "cross_attn_attn_gate", "mlp_gate": "cross_attn_mlp_gate"}
"""Its gates, which are tensors of their own."""


@dataclass(frozen=True)
class DecoderNames:
    """Where a family's checkpoint keeps its decoder: the prefix of all but the output matrix, and that one's name."""

    body: str
    output: str

    @property
    def embedding(self) -> str:
        return f"{self.body}embed_tokens.weight"

    @property
    def norm(self) -> str:
        return f"{self.body}norm.weight"

    def layer(self, index: int) -> str:
        return f"{self.body}layers.{index}"


def fill_decoder(
    weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ranks: Ranks, names: DecoderNames
) -> None:
    """Fill this rank's part. Raises CheckpointError where a tensor is missing or not of its shape."""
    _fill_ends(weights, text, shard, ranks, names)
    for place, index in enumerate(shard.layers):
        fill = _fill_cross_layer if index in text.cross_attention_layers else _fill_layer
        fill(weights, text, shard, f"decoder.layers.{place}", names.layer(index))


def is_elsewhere(
    text: DecoderConfig, shard: DecoderShard, ranks: Ranks, names: DecoderNames, vision: tuple[str, ...]
) -> Callable[[str], bool]:
    """Whether a tensor need not be read here, by name: it belongs to another stage, or repeats what is known.

    `vision`: the prefixes of all that is neither in the decoder nor its output matrix.
    """
    layer_name = re.compile(re.escape(names.body) + r"layers\.(\d+)\.")

    def elsewhere(name: str) -> bool:
        match = layer_name.match(name)
        if match is not None:
            index = int(match[1])
            return name.endswith(".inv_freq") or (index < text.num_layers and index not in shard.layers)
        return (
            name.endswith(".inv_freq")
            or (text.tied_embeddings and name == names.output)
            or (not ranks.is_first_stage and name.startswith((names.embedding, *vision)))
            or (not ranks.is_last_stage and name.startswith((names.norm, names.output)))
        )

    return elsewhere


def _fill_ends(
    weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ranks: Ranks, names: DecoderNames
) -> None:
    """Embedding, output and the norm before it."""
    shape = (text.vocab_size, text.hidden_size)
    if ranks.is_first_stage:
        read = partial(weights.read, names.embedding, text.vocab_size + text.read_only_tokens, text.hidden_size)
        weights.fill("decoder.embed_tokens.weight", read(rows=shard.vocabulary))
        if text.read_only_tokens:
            weights.fill("read_only_tokens", read(rows=range(text.vocab_size, text.vocab_size + text.read_only_tokens)))
    if not ranks.is_last_stage:
        return
    weights.fill("decoder.norm.weight", weights.read(names.norm, text.hidden_size))
    if not (text.tied_embeddings and ranks.is_first_stage):
        output = names.embedding if text.tied_embeddings else names.output
        weights.fill("decoder.output.weight", weights.read(output, *shape, rows=shard.vocabulary))


def _fill_layer(weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ours: str, theirs: str) -> None:
    hidden = text.hidden_size
    heads, kv_heads = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    query, key_value = (heads_to_rows(x, text.head_dim) for x in (shard.query_heads, shard.kv_heads))
    for kind, columns in (("weight", (hidden,)), ("bias", ())):
        if kind == "bias" and not text.qkv_bias:
            continue
        parts = [
            weights.read(f"{theirs}.self_attn.{name}_proj.{kind}", count, *columns, rows=rows)
            for name, count, rows in (("q", heads, query), ("k", kv_heads, key_value), ("v", kv_heads, key_value))
        ]
        weights.fill(f"{ours}.qkv_proj.{kind}", *parts)
    output = weights.read(f"{theirs}.self_attn.o_proj.weight", hidden, heads, columns=query)
    weights.fill(f"{ours}.output_proj.weight", output)
    _fill_norms_and_mlp(weights, text, shard, ours, theirs)


def _fill_cross_layer(weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ours: str, theirs: str) -> None:
    hidden = text.hidden_size
    heads, kv_heads = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    query, key_value = (heads_to_rows(x, text.head_dim) for x in (shard.query_heads, shard.kv_heads))
    for name, count, rows in (("q_proj", heads, query), ("kv_proj", kv_heads, key_value)):
        parts = [
            weights.read(f"{theirs}.{part}.weight", count, hidden, rows=rows) for part in CROSS_LAYER_MODULES[name]
        ]
        weights.fill(f"{ours}.{name}.weight", *parts)
    for name in ("q_norm", "k_norm"):
        weights.fill(f"{ours}.{name}.weight", weights.read(f"{theirs}.cross_attn.{name}.weight", text.head_dim))
    output = weights.read(f"{theirs}.cross_attn.o_proj.weight", hidden, heads, columns=query)
    weights.fill(f"{ours}.output_proj.weight", output)
    for name, stored in GATES.items():
        weights.fill(f"{ours}.{name}", weights.read(f"{theirs}.{stored}", 1))
    _fill_norms_and_mlp(weights, text, shard, ours, theirs)


def _fill_norms_and_mlp(
    weights: WeightFiller, text: DecoderConfig, shard: DecoderShard, ours: str, theirs: str
) -> None:
    hidden, inner = text.hidden_size, text.intermediate_size
    weights.fill(f"{ours}.input_norm.weight", weights.read(f"{theirs}.input_layernorm.weight", hidden))
    weights.fill(f"{ours}.mlp_norm.weight", weights.read(f"{theirs}.post_attention_layernorm.weight", hidden))
    gate_up = [
        weights.read(f"{theirs}.mlp.{half}_proj.weight", inner, hidden, rows=shard.intermediate)
        for half in ("gate", "up")
    ]
    weights.fill(f"{ours}.mlp.gate_up_proj.weight", *gate_up)
    down = weights.read(f"{theirs}.mlp.down_proj.weight", hidden, inner, columns=shard.intermediate)
    weights.fill(f"{ours}.mlp.down_proj.weight", down)
