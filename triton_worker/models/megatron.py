"""How megatron-core's TransformerBlock stores its layers, in decoders and in vision towers alike.

A layer's norm is stored with the projection behind it; query, key and value rows are interleaved by group; gate and up
rows follow one another. NeMo 2.0 puts a model together from such blocks under the prefixes below.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triton_worker.models.weights import WeightFiller

LANGUAGE = "module.language_model."
VISION = "module.vision_model."
PROJECTION = "module.vision_projection."

NORMS = {
    "input_norm": "self_attention.linear_qkv.layer_norm",
    "attention_norm": "self_attention.linear_qkv.layer_norm",
    "mlp_norm": "mlp.linear_fc1.layer_norm",
}
"""The norms of a layer by our names: what comes before ``_weight`` or ``_bias``."""
PROJECTIONS = {
    "qkv_proj": "self_attention.linear_qkv",
    "output_proj": "self_attention.linear_proj",
    "mlp.gate_up_proj": "mlp.linear_fc1",
    "mlp.up_proj": "mlp.linear_fc1",
    "mlp.down_proj": "mlp.linear_fc2",
}
"""The projections of a layer by our names."""


class Layer:
    """One layer's tensors. NeMo stacks them as `layers.<rest>` [layers, ...]; megatron-core can also number them.

    See TransformerBlock.sharded_state_dict; `singleton_local_shards`, from megatron-core 0.14 on, asks for numbers.
    """

    def __init__(self, weights: WeightFiller, prefix: str, index: int, count: int | None) -> None:
        """count: how many are stacked; None where they never are."""
        self._weights = weights
        self._prefix = prefix
        self._index = index
        self._count = count

    def read(self, rest: str, *shape: int, rows: range | None = None, columns: range | None = None) -> Tensor:
        """The layer's own tensor, which must have `shape`, or these rows and columns of it."""
        numbered = f"{self._prefix}{self._index}.{rest}"
        if self._count is None or self._weights.has(numbered):
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


def fill_vision_layers(weights: WeightFiller, num_layers: int, num_heads: int) -> None:
    """Fill `vision.blocks`, the first of the tower's `num_layers`, whose heads all have keys and values of their own.

    Raises CheckpointError where a tensor is missing or not of its shape.
    """
    for name, shape in weights.unfilled("vision.blocks."):
        _, _, index, *place, kind = name.split(".")
        layer, module = Layer(weights, f"{VISION}decoder.layers.", int(index), num_layers), ".".join(place)
        if module in NORMS:
            weights.fill(name, layer.read(f"{NORMS[module]}_{kind}", *shape))
        elif module == "qkv_proj":
            weights.fill(name, *ungrouped(layer.read(f"{PROJECTIONS[module]}.{kind}", *shape), num_heads, num_heads))
        elif module == "mlp.gate_up_proj":
            weights.fill(name, *layer.read_gated(f"{PROJECTIONS[module]}.{kind}", shape[0] // 2, *shape[1:]))
        else:
            weights.fill(name, layer.read(f"{PROJECTIONS[module]}.{kind}", *shape))


def fill_projector(weights: WeightFiller, up: str, down: str) -> None:
    """Fill the two projections between tower and decoder. Raises CheckpointError as above."""
    # projector_type mlp2x_gelu is an nn.Sequential, mcore_mlp a megatron MLP; both compute the same.
    sequential = weights.has(f"{PROJECTION}0.weight")
    theirs = ("0", "2") if sequential else ("encoder.linear_fc1", "encoder.linear_fc2")
    for module, stored in zip((up, down), theirs, strict=True):
        for name, shape in weights.unfilled(f"{module}."):
            kind = name.rpartition(".")[2]
            weights.fill(name, weights.read(f"{PROJECTION}{stored}.{kind}", *shape))


def ungrouped(rows: Tensor, num_heads: int, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value rows from megatron's order: per group its query heads, its key head, its value head."""
    queries = num_heads // num_groups
    groups = torch.unflatten(rows, 0, (num_groups, queries + 2, -1))
    return groups[:, :queries].flatten(0, 2), groups[:, queries].flatten(0, 1), groups[:, queries + 1].flatten(0, 1)


def grouped(parts: list[Tensor], num_groups: int) -> Tensor:
    """The reverse of `ungrouped`."""
    return torch.cat([torch.unflatten(part, 0, (num_groups, -1)) for part in parts], dim=1).flatten(0, 1)
