"""Fills both families from the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from triton_worker.models.decoder import weights_huggingface, weights_nemo
from triton_worker.models.decoder.weights_huggingface import DecoderNames
from triton_worker.models.megatron import VISION, fill_projector, fill_vision_layers
from triton_worker.models.qwen_vl.config import VisionConfig
from triton_worker.models.qwen_vl.model import QwenVL
from triton_worker.models.weights import WeightFiller

MERGER_MODULES = {"norm": ("ln_q",), "up_proj": ("mlp.0",), "down_proj": ("mlp.2",)}
"""The merger's modules by our names, as Hugging Face calls them."""


def fill_from_huggingface(weights: WeightFiller, model: QwenVL, block_modules: Mapping[str, tuple[str, ...]]) -> None:
    """Fill this rank's part, under the names of transformers 4 or of 5. `block_modules`: those of the tower's blocks.

    Raises CheckpointError where a tensor is missing, left over or not of its shape.
    """
    # The hub's files say model. and visual.; a model saved in transformers 4.52's own naming nests both.
    nested = weights.has("model.language_model.embed_tokens.weight")
    body, visual = ("model.language_model.", "model.visual.") if nested else ("model.", "visual.")
    names, text, vision = DecoderNames(body, "lm_head.weight"), model.config.text, model.config.vision
    weights_huggingface.fill_decoder(weights, text, model.shard, model.ranks, names)
    if model.ranks.is_first_stage:
        _fill_patch_embedding(weights, vision, f"{visual}patch_embed.proj.weight")
        for index in range(vision.num_layers):
            weights.fill_modules(f"vision.blocks.{index}.", f"{visual}blocks.{index}.", block_modules)
        weights.fill_modules("vision.merger.", f"{visual}merger.", MERGER_MODULES)
    weights.finish(weights_huggingface.is_elsewhere(text, model.shard, model.ranks, names, (visual,)))


def fill_from_nemo(weights: WeightFiller, model: QwenVL) -> None:
    """Fill this rank's part. Raises CheckpointError as above."""
    text, vision = model.config.text, model.config.vision
    weights_nemo.fill_decoder(weights, text, model.shard, model.ranks)
    if model.ranks.is_first_stage:
        _fill_patch_embedding(weights, vision, f"{VISION}conv1.weight")
        fill_vision_layers(weights, vision.num_layers, vision.num_heads)
        for name, shape in weights.unfilled("vision.merger.norm."):
            weights.fill(name, weights.read(f"{VISION}decoder.final_layernorm.{name.rpartition('.')[2]}", *shape))
        fill_projector(weights, "vision.merger.up_proj", "vision.merger.down_proj")
    weights.finish(weights_nemo.is_elsewhere(text, model.shard, model.ranks))


def _fill_patch_embedding(weights: WeightFiller, vision: VisionConfig, name: str) -> None:
    patch = (3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    weights.fill("vision.patch_embed.weight", weights.read(name, vision.hidden_size, *patch).flatten(1))
