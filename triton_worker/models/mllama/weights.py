"""Fills Llama 3.2 Vision from the tensors of a checkpoint, and says where each of the tower's is in both layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from triton_worker.models.decoder import weights_huggingface, weights_nemo
from triton_worker.models.decoder.weights_huggingface import DecoderNames
from triton_worker.models.megatron import VISION, ungrouped
from triton_worker.models.mllama.config import VisionConfig
from triton_worker.models.mllama.model import Mllama
from triton_worker.models.weights import WeightFiller

_NEMO_TOWER = f"{VISION}vision_encoder."
_NEMO_PROJECTOR = f"{VISION}vision_projection.encoder."
QKV = "qkv_proj.weight"
PATCHES = "patch_embed.weight"

_STACKS = {"blocks": "transformer.layers", "global_blocks": "global_transformer.layers"}
_GATES = {"attention_gate": "gate_attn", "mlp_gate": "gate_ffn"}
_HUGGINGFACE_ENDS = {
    "class_token": "class_embedding",
    "position_embed": "gated_positional_embedding.embedding",
    "position_gate": "gated_positional_embedding.gate",
    "tile_position_embed": "gated_positional_embedding.tile_embedding.weight",
    "tile_embed_before": "pre_tile_positional_embedding.embedding.weight",
    "tile_gate_before": "pre_tile_positional_embedding.gate",
    "tile_embed_after": "post_tile_positional_embedding.embedding.weight",
    "tile_gate_after": "post_tile_positional_embedding.gate",
    "patch_embed": "patch_embedding",
    "norm_before": "layernorm_pre",
    "norm_after": "layernorm_post",
}
_NEMO_ENDS = {
    "class_token": "class_embedding",
    "position_embed": "positional_embedding",
    "position_gate": "gated_positional_embedding_gate",
    "tile_position_embed": "gated_tile_positional_embedding.weight",
    "tile_embed_before": "pre_tile_pos_embed.embedding.weight",
    "tile_gate_before": "pre_tile_pos_embed.gate",
    "tile_embed_after": "post_tile_pos_embed.embedding.weight",
    "tile_gate_after": "post_tile_pos_embed.gate",
    "patch_embed": "conv1._linear",
    "norm_before": "ln_pre",
    "norm_after": "ln_post",
}
_HUGGINGFACE_BLOCK = {
    **_GATES,
    "attention_norm": "input_layernorm",
    "output_proj": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}
_NEMO_BLOCK = {
    **_GATES,
    "attention_norm": "input_layernorm",
    "qkv_proj": "self_attention.linear_qkv",
    "output_proj": "self_attention.linear_proj",
    "mlp_norm": "pre_mlp_layernorm",
    "mlp.up_proj": "mlp.linear_fc1",
    "mlp.down_proj": "mlp.linear_fc2",
}


@dataclass(frozen=True)
class HuggingFaceNames:
    """Where a checkpoint keeps the decoder's tensors, and the prefixes of the others."""

    decoder: DecoderNames
    tower: str
    projector: str

    @classmethod
    def of(cls, has: Callable[[str], bool]) -> HuggingFaceNames:
        """As the hub has them, or as transformers 4.52 and later ones of 4 do. has: whether there is such a tensor."""
        if not has("model.language_model.embed_tokens.weight"):
            return HUB_NAMES
        names = DecoderNames("model.language_model.", "lm_head.weight")
        return cls(names, "model.vision_model.", "model.multi_modal_projector.")

    def of_tower(self, parameter: str) -> list[str]:
        """The tensors that a parameter of ours under `vision.` is made of, one below the other."""
        name = parameter.removeprefix("vision.")
        stack, index, rest = _place(name)
        if stack is not None:
            parts = [f"self_attn.{part}_proj.weight" for part in "qkv"] if rest == QKV else [rest]
            return [f"{self.tower}{stack}.{index}.{_renamed(part, _HUGGINGFACE_BLOCK)}" for part in parts]
        if name.startswith("projector."):
            return [f"{self.projector}{name.removeprefix('projector.')}"]
        return [f"{self.tower}{_renamed(name, _HUGGINGFACE_ENDS)}"]


HUB_NAMES = HuggingFaceNames(
    DecoderNames("language_model.model.", "language_model.lm_head.weight"), "vision_model.", "multi_modal_projector."
)


def nemo_place(parameter: str) -> tuple[str, int | None]:
    """The tensor that holds a parameter of ours under `vision.`; where it is a stack of layers, which one."""
    name = parameter.removeprefix("vision.")
    stack, index, rest = _place(name)
    if stack is not None:
        return f"{_NEMO_TOWER}{stack}.{_renamed(rest, _NEMO_BLOCK)}", index
    if name.startswith("projector."):
        return f"{_NEMO_PROJECTOR}{name.removeprefix('projector.')}", None
    return f"{_NEMO_TOWER}{_renamed(name, _NEMO_ENDS)}", None


def stack_size(vision: VisionConfig, parameter: str) -> int:
    """How many layers there are of a parameter's kind."""
    return vision.num_global_layers if parameter.startswith("vision.global_blocks.") else vision.num_layers


def fill_from_huggingface(weights: WeightFiller, model: Mllama) -> None:
    """Fill this rank's part. Raises CheckpointError where a tensor is missing, left over or not of its shape."""
    names, text, patch = HuggingFaceNames.of(weights.has), model.config.text, model.config.vision.patch_size
    weights_huggingface.fill_decoder(weights, text, model.shard, model.ranks, names.decoder)
    for parameter, (rows, *columns) in weights.unfilled("vision."):
        if parameter == f"vision.{PATCHES}":
            [name] = names.of_tower(parameter)
            weights.fill(parameter, weights.read(name, rows, 3, patch, patch).flatten(1))
            continue
        parts = names.of_tower(parameter)
        weights.fill(parameter, *(weights.read(name, rows // len(parts), *columns) for name in parts))
    weights.finish(weights_huggingface.is_elsewhere(text, model.shard, model.ranks, names.decoder, ()))


def fill_from_nemo(weights: WeightFiller, model: Mllama) -> None:
    """Fill this rank's part. Raises CheckpointError as above."""
    text, vision = model.config.text, model.config.vision
    weights_nemo.fill_decoder(weights, text, model.shard, model.ranks)
    for parameter, shape in weights.unfilled("vision."):
        name, index = nemo_place(parameter)
        if index is None:
            weights.fill(parameter, weights.read(name, *shape))
            continue
        stored = weights.read_layer(name, index, stack_size(vision, parameter), *shape)
        heads = vision.num_heads
        weights.fill(parameter, *(ungrouped(stored, heads, heads) if parameter.endswith(QKV) else (stored,)))
    weights.finish(weights_nemo.is_elsewhere(text, model.shard, model.ranks))


def _place(name: str) -> tuple[str | None, int | None, str]:
    """The stack that a parameter of a block is in, by the name that both layouts have for it, and its place there."""
    first, _, rest = name.partition(".")
    if first not in _STACKS:
        return None, None, name
    index, _, rest = rest.partition(".")
    return _STACKS[first], int(index), rest


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """By its own name, or by that of its module."""
    module, _, kind = name.rpartition(".")
    if name in names:
        return names[name]
    return f"{names[module]}.{kind}" if module in names else name
