"""Fills Qwen2.5-VL from the tensors of a NeMo 2.0 checkpoint.

Names and layouts: nemo.collections.vlm.qwen2vl on megatron-core's TransformerBlock. A layer's norm is stored with the
projection behind it; query, key and value rows are interleaved by group; gate and up rows follow one another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from triton_worker.models.qwen2_5_vl.config import Qwen25VLConfig
from triton_worker.models.weights import WeightFiller

_LANGUAGE = "module.language_model."
_VISION = "module.vision_model."
_PROJECTION = "module.vision_projection."
WORD_EMBEDDINGS = f"{_LANGUAGE}embedding.word_embeddings.weight"


def fill_from_nemo(weights: WeightFiller, config: Qwen25VLConfig) -> None:
    """Raises CheckpointError where a tensor is missing, left over or not of the shape that `config` asks for."""
    _fill_decoder(weights, config)
    _fill_vision(weights, config)
    _fill_merger(weights, config)
    weights.finish()


def _fill_decoder(weights: WeightFiller, config: Qwen25VLConfig) -> None:
    text = config.text
    hidden, heads, inner = text.hidden_size, text.num_heads * text.head_dim, text.intermediate_size
    qkv_rows = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    weights.fill("decoder.embed_tokens", weights.read(WORD_EMBEDDINGS, text.vocab_size, hidden))
    if not text.tied_embeddings:
        weights.fill("decoder.output", weights.read(f"{_LANGUAGE}output_layer.weight", text.vocab_size, hidden))
    weights.fill("decoder.norm.weight", weights.read(f"{_LANGUAGE}decoder.final_layernorm.weight", hidden))
    for index in range(text.num_layers):
        layer = _Layer(weights, f"{_LANGUAGE}decoder.layers.", index, text.num_layers)
        ours = f"decoder.layers.{index}"
        weights.fill(f"{ours}.input_norm.weight", layer.read("self_attention.linear_qkv.layer_norm_weight", hidden))
        for kind, shape in (("weight", (qkv_rows, hidden)), ("bias", (qkv_rows,))):
            grouped = layer.read(f"self_attention.linear_qkv.{kind}", *shape)
            parts = _ungrouped(grouped, text.num_heads, text.num_kv_heads)
            weights.fill(f"{ours}.qkv_proj.{kind}", *parts)
        weights.fill(f"{ours}.output_proj.weight", layer.read("self_attention.linear_proj.weight", hidden, heads))
        weights.fill(f"{ours}.mlp_norm.weight", layer.read("mlp.linear_fc1.layer_norm_weight", hidden))
        weights.fill(f"{ours}.mlp.gate_up_proj.weight", *layer.read_gated("mlp.linear_fc1.weight", inner, hidden))
        weights.fill(f"{ours}.mlp.down_proj.weight", layer.read("mlp.linear_fc2.weight", hidden, inner))


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

    def read(self, rest: str, *shape: int) -> Tensor:
        """The layer's own tensor, which must have `shape`."""
        numbered = f"{self._prefix}{self._index}.{rest}"
        if self._weights.has(numbered):
            return self._weights.read(numbered, *shape)
        return self._weights.read_row(f"{self._prefix}{rest}", self._index, self._count, *shape)

    def read_gated(self, rest: str, rows: int, *columns: int) -> tuple[Tensor, ...]:
        """Gate and up, `rows` each: one tensor, or two where layers are numbered (apply_swiglu_sharded_factory)."""
        if self._weights.has(f"{self._prefix}{self._index}.{rest}_w"):
            return tuple(self.read(f"{rest}_{half}", rows, *columns) for half in "wv")
        return (self.read(rest, 2 * rows, *columns),)


def _shaper(columns: bool) -> Callable[[int, int], tuple[int, ...]]:
    """The shape of a projection's weight, or of its bias, from rows and columns."""
    return (lambda rows, cols: (rows, cols)) if columns else (lambda rows, _: (rows,))


def _ungrouped(rows: Tensor, num_heads: int, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value rows from megatron's order: per group its query heads, its key head, its value head."""
    queries = num_heads // num_groups
    groups = torch.unflatten(rows, 0, (num_groups, queries + 2, -1))
    return groups[:, :queries].flatten(0, 2), groups[:, queries].flatten(0, 1), groups[:, queries + 1].flatten(0, 1)
