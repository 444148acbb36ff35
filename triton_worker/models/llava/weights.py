"""Fills LLaVA-1.5 from the tensors of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable

from triton_worker.models.decoder import weights_huggingface, weights_nemo
from triton_worker.models.decoder.weights_huggingface import DecoderNames
from triton_worker.models.llava.config import ClipConfig
from triton_worker.models.llava.model import Llava
from triton_worker.models.megatron import VISION, fill_projector, fill_vision_layers
from triton_worker.models.weights import WeightFiller

NEMO_TOWER = f"{VISION}vision_model."
"""Where NeMo keeps a tower of transformers, whose own names follow."""

_BLOCK_MODULES = {
    "attention_norm": ("layer_norm1",),
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output_proj": ("self_attn.out_proj",),
    "mlp_norm": ("layer_norm2",),
    "mlp.up_proj": ("mlp.fc1",),
    "mlp.down_proj": ("mlp.fc2",),
}
PROJECTOR_MODULES = {"up_proj": ("linear_1",), "down_proj": ("linear_2",)}
_PREFIXES = ("", "model.")
_TOWERS = tuple(f"{prefix}vision_tower.{nested}" for prefix in _PREFIXES for nested in ("vision_model.", ""))


def huggingface_names(has: Callable[[str], bool]) -> tuple[DecoderNames, str, str]:
    """The decoder's names, and the prefixes of projector and tower, as the version of transformers had it.

    has: whether there is a tensor of this name. Version 4 says language_model.model., its later ones
    model.language_model., and 5 leaves out the vision_model. of the tower.
    """
    nested = has("model.language_model.embed_tokens.weight")
    names = DecoderNames("model.language_model.", "lm_head.weight")
    if not nested:
        names = DecoderNames("language_model.model.", "language_model.lm_head.weight")
    projector = "model.multi_modal_projector." if nested else "multi_modal_projector."
    tower = next((tower for tower in _TOWERS if has(f"{tower}embeddings.class_embedding")), _TOWERS[0])
    return names, projector, tower


def fill_from_huggingface(weights: WeightFiller, model: Llava) -> None:
    """Fill this rank's part. Raises CheckpointError where a tensor is missing, left over or not of its shape."""
    names, projector, tower = huggingface_names(weights.has)
    text, vision = model.config.text, model.config.vision
    weights_huggingface.fill_decoder(weights, text, model.shard, model.ranks, names)
    if model.ranks.is_first_stage:
        _fill_clip(weights, vision, tower)
        weights.fill_modules("vision.projector.", projector, PROJECTOR_MODULES)
    unused = is_unused(vision, tower)
    elsewhere = weights_huggingface.is_elsewhere(text, model.shard, model.ranks, names, (tower, projector))
    weights.finish(lambda name: unused(name) or elsewhere(name))


def fill_from_nemo(weights: WeightFiller, model: Llava) -> None:
    """Fill this rank's part. Raises CheckpointError as above."""
    text, vision = model.config.text, model.config.vision
    weights_nemo.fill_decoder(weights, text, model.shard, model.ranks)
    if model.ranks.is_first_stage:
        if weights.has(f"{VISION}class_token"):
            _fill_megatron_clip(weights, vision)
        else:
            _fill_clip(weights, vision, NEMO_TOWER)
        fill_projector(weights, "vision.projector.up_proj", "vision.projector.down_proj")
    unused, elsewhere = is_unused(vision, NEMO_TOWER), weights_nemo.is_elsewhere(text, model.shard, model.ranks)
    weights.finish(lambda name: unused(name) or elsewhere(name))


def is_unused(vision: ClipConfig, tower: str) -> Callable[[str], bool]:
    """Whether a tensor of CLIP's tower is none that LLaVA runs, by name: it stops before the last layers."""
    layer_name = re.compile(rf"{re.escape(tower)}(?:encoder|decoder)\.layers\.(\d+)\.")
    ends = (f"{tower}post_layernorm.", f"{tower}embeddings.position_ids")

    def unused(name: str) -> bool:
        match = layer_name.match(name)
        return name.startswith(ends) or (match is not None and vision.layers_used <= int(match[1]) < vision.num_layers)

    return unused


def _fill_clip(weights: WeightFiller, vision: ClipConfig, tower: str) -> None:
    """From a tower of transformers."""
    size, patch, places = vision.hidden_size, vision.patch_size, vision.side**2 + 1
    embeddings = f"{tower}embeddings."
    weights.fill("vision.class_token.weight", weights.read(f"{embeddings}class_embedding", size)[None])
    kernel = weights.read(f"{embeddings}patch_embedding.weight", size, 3, patch, patch)
    weights.fill("vision.patch_embed.weight", kernel.flatten(1))
    positions = weights.read(f"{embeddings}position_embedding.weight", places, size)
    weights.fill("vision.position_embed.weight", positions)
    weights.fill_modules("vision.pre_norm", tower, {"": ("pre_layrnorm",)})
    for index in range(vision.layers_used):
        weights.fill_modules(f"vision.blocks.{index}.", f"{tower}encoder.layers.{index}.", _BLOCK_MODULES)


def _fill_megatron_clip(weights: WeightFiller, vision: ClipConfig) -> None:
    """From a tower of megatron-core (CLIPViTModel)."""
    size, patch, places = vision.hidden_size, vision.patch_size, vision.side**2 + 1
    weights.fill("vision.class_token.weight", weights.read(f"{VISION}class_token", 1, 1, size)[0])
    weights.fill("vision.patch_embed.weight", weights.read(f"{VISION}conv1.weight", size, 3, patch, patch).flatten(1))
    weights.fill("vision.position_embed.weight", weights.read(f"{VISION}position_embeddings.weight", places, size))
    weights.fill_modules("vision.pre_norm", VISION, {"": ("ln_pre",)})
    fill_vision_layers(weights, vision.num_layers, vision.num_heads)
