"""Fills Qwen2.5-VL from the tensors of a NeMo 2.0 checkpoint.

Names and layouts: nemo.collections.vlm.qwen2vl on megatron-core's TransformerBlock. A layer's norm is stored with the
projection behind it; query, key and value rows are interleaved by group; gate and up rows follow one another.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from triton_worker.models.qwen2_5_vl.config import Qwen25VLConfig, TextConfig
from triton_worker.models.weights import WeightFiller
from triton_worker.parallel import DecoderShard, Ranks, heads_to_rows

_LANGUAGE = "module.language_model."
_VISION = "module.vision_model."
_PROJECTION = "module.vision_projection."
_LAYERS = f"{_LANGUAGE}decoder.layers."
_NUMBERED = re.compile(re.escape(_LAYERS) + r"(\d+)\.")
WORD_EMBEDDINGS = f"{_LANGUAGE}embedding.word_embeddings.weight"
_OUTPUT = f"{_LANGUAGE}output_layer.weight"
_NORM = f"{_LANGUAGE}decoder.final_layernorm.weight"


def fill_from_nemo(weights: WeightFiller, config: Qwen25VLConfig, shard: DecoderShard, ranks: Ranks) -> None:
    """Fill this rank's part. Raises CheckpointError where a tensor is missing, left over or not of its shape."""
    _fill_ends(weights, config.text, shard, ranks)
    for place, index in enumerate(shard.layers):
        layer = _Layer(weights, _LAYERS, index, config.text.num_layers)
        _fill_layer(layer, weights, config.text, shard, f"decoder.layers.{place}")
    if ranks.is_first_stage:
        _fill_vision(weights, config)
        _fill_merger(weights, config)

    def is_elsewhere(name: str) -> bool:
        match = _NUMBERED.match(name)
        if match is not None:
            index = int(match[1])
            return index < config.text.num_layers and index not in shard.layers
        return (not ranks.is_first_stage and name.startswith((WORD_EMBEDDINGS, _VISION, _PROJECTION))) or (
            not ranks.is_last_stage and name.startswith((_NORM, _OUTPUT))
        )

    weights.finish(is_elsewhere)


def _fill_ends(weights: WeightFiller, text: TextConfig, shard: DecoderShard, ranks: Ranks) -> None:
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


def _fill_layer(layer: _Layer, weights: WeightFiller, text: TextConfig, shard: DecoderShard, ours: str) -> None:
    hidden, heads, inner = text.hidden_size, text.num_heads * text.head_dim, text.intermediate_size
    qkv_rows = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    # A group is its query heads, its key head and its value head; a rank that holds part of one reads all of it.
    group_rows = heads_to_rows(shard.kv_heads, qkv_rows // text.num_kv_heads)
    weights.fill(f"{ours}.input_norm.weight", layer.read("self_attention.linear_qkv.layer_norm_weight", hidden))
    for kind, shape in (("weight", (qkv_rows, hidden)), ("bias", (qkv_rows,))):
        grouped = layer.read(f"self_attention.linear_qkv.{kind}", *shape, rows=group_rows)
        group_heads = text.num_heads // text.num_kv_heads
        query, key, value = _ungrouped(grouped, group_heads * len(shard.kv_heads), len(shard.kv_heads))
        first = shard.query_heads.start - shard.kv_heads.start * group_heads
        own = heads_to_rows(range(first, first + len(shard.query_heads)), text.head_dim)
        weights.fill(f"{ours}.qkv_proj.{kind}", query[own.start : own.stop], key, value)
    output_columns = heads_to_rows(shard.query_heads, text.head_dim)
    output = layer.read("self_attention.linear_proj.weight", hidden, heads, columns=output_columns)
    weights.fill(f"{ours}.output_proj.weight", output)
    weights.fill(f"{ours}.mlp_norm.weight", layer.read("mlp.linear_fc1.layer_norm_weight", hidden))
    gate_up = layer.read_gated("mlp.linear_fc1.weight", inner, hidden, rows=shard.intermediate)
    weights.fill(f"{ours}.mlp.gate_up_proj.weight", *gate_up)
    down = layer.read("mlp.linear_fc2.weight", hidden, inner, columns=shard.intermediate)
    weights.fill(f"{ours}.mlp.down_proj.weight", down)


def _fill_vision(weights: WeightFiller, config: Qwen25VLConfig) -> None:
    vision = config.vision
    size, inner, patch = vision.hidden_size, vision.intermediate_size, vision.patch_size
    kernel = weights.read(f"{_VISION}conv1.weight", size, 3, vision.temporal_patch_size, patch, patch)
    weights.fill("vision.patch_embed.weight", kernel.flatten(1))
    for index in range(vision.num_layers):
        layer = _Layer(weights, f"{_VISION}decoder.layers.", index, vision.num_layers)
        ours = f"vision.blocks.{index}"
        weights.fill(f"{ours}.attention_norm.weight", layer.read("self_attention.linear_qkv.layer_norm_weight", size))
        weights.fill(f"{ours}.mlp_norm.weight", layer.read("mlp.linear_fc1.layer_norm_weight", size))
        for kind, columns in (("weight", True), ("bias", False)):
            shape = _shaper(columns)
            grouped = layer.read(f"self_attention.linear_qkv.{kind}", *shape(3 * size, size))
            weights.fill(f"{ours}.qkv_proj.{kind}", *_ungrouped(grouped, vision.num_heads, vision.num_heads))
            output = layer.read(f"self_attention.linear_proj.{kind}", *shape(size, size))
            weights.fill(f"{ours}.output_proj.{kind}", output)
            gate_up = layer.read_gated(f"mlp.linear_fc1.{kind}", *shape(inner, size))
            weights.fill(f"{ours}.mlp.gate_up_proj.{kind}", *gate_up)
            weights.fill(f"{ours}.mlp.down_proj.{kind}", layer.read(f"mlp.linear_fc2.{kind}", *shape(size, inner)))


def _fill_merger(weights: WeightFiller, config: Qwen25VLConfig) -> None:
    unit = config.vision.hidden_size * config.vision.merge_size**2
    norm = weights.read(f"{_VISION}decoder.final_layernorm.weight", config.vision.hidden_size)
    weights.fill("vision.merger.norm.weight", norm)
    # projector_type mlp2x_gelu is an nn.Sequential, mcore_mlp a megatron MLP; both compute the same.
    sequential = weights.has(f"{_PROJECTION}0.weight")
    up, down = ("0", "2") if sequential else ("encoder.linear_fc1", "encoder.linear_fc2")
    for kind, columns in (("weight", True), ("bias", False)):
        shape = _shaper(columns)
        weights.fill(f"vision.merger.up_proj.{kind}", weights.read(f"{_PROJECTION}{up}.{kind}", *shape(unit, unit)))
        output = weights.read(f"{_PROJECTION}{down}.{kind}", *shape(config.text.hidden_size, unit))
        weights.fill(f"vision.merger.down_proj.{kind}", output)


class _Layer:
    """One layer's tensors. NeMo stacks them as `layers.<rest>` [layers, ...]; megatron-core can also number them.

    See TransformerBlock.sharded_state_dict; `singleton_local_shards`, from megatron-core 0.14 on, asks for numbers.
    """

    def __init__(self, weights: WeightFiller, prefix: str, index: int, count: int) -> None:
        self._weights = weights
        self._prefix = prefix
        self._index = index
        self._count = count

    def read(self, rest: str, *shape: int, rows: range | None = None, columns: range | None = None) -> Tensor:
        """The layer's own tensor, which must have `shape`, or these rows and columns of it."""
        numbered = f"{self._prefix}{self._index}.{rest}"
        if self._weights.has(numbered):
            return self._weights.read(numbered, *shape, rows=rows, columns=columns)
        stack = (self._count, *shape)
        return self._weights.read_layer(f"{self._prefix}{rest}", self._index, *stack, rows=rows, columns=columns)

    def read_gated(self, rest: str, count: int, *columns: int, rows: range | None = None) -> tuple[Tensor, ...]:
        """Gate and up, `count` rows each, or these rows of each.

        They are one tensor, or two where layers are numbered (apply_swiglu_sharded_factory).
        """
        if self._weights.has(f"{self._prefix}{self._index}.{rest}_w"):
            return tuple(self.read(f"{rest}_{half}", count, *columns, rows=rows) for half in "wv")
        if rows is None or len(rows) == count:
            return (self.read(rest, 2 * count, *columns),)
        halves = (rows, range(count + rows.start, count + rows.stop))
        return tuple(self.read(rest, 2 * count, *columns, rows=half) for half in halves)


def _shaper(columns: bool) -> Callable[[int, int], tuple[int, ...]]:
    """The shape of a projection's weight, or of its bias, from rows and columns."""
    return (lambda rows, cols: (rows, cols)) if columns else (lambda rows, _: (rows,))


def _ungrouped(rows: Tensor, num_heads: int, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value rows from megatron's order: per group its query heads, its key head, its value head."""
    queries = num_heads // num_groups
    groups = torch.unflatten(rows, 0, (num_groups, queries + 2, -1))
    return groups[:, :queries].flatten(0, 2), groups[:, queries].flatten(0, 1), groups[:, queries + 1].flatten(0, 1)
