"""Fills Qwen2.5-VL from the tensors of a Hugging Face checkpoint, under the names of transformers 4 or of 5."""

from __future__ import annotations

from triton_worker.models.qwen2_5_vl.config import Qwen25VLConfig
from triton_worker.models.weights import WeightFiller


def fill_from_huggingface(weights: WeightFiller, config: Qwen25VLConfig) -> None:
    """Raises CheckpointError where a tensor is missing, left over or not of the shape that `config` asks for."""
    # The hub's files say model. and visual.; a model saved in transformers 4.52's own naming nests both.
    nested = weights.has("model.language_model.embed_tokens.weight")
    _fill_decoder(weights, config, "model.language_model." if nested else "model.")
    _fill_vision(weights, config, "model.visual." if nested else "visual.")
    tied = config.text.tied_embeddings
    weights.finish(lambda name: name.endswith(".inv_freq") or (tied and name == "lm_head.weight"))


def _fill_decoder(weights: WeightFiller, config: Qwen25VLConfig, prefix: str) -> None:
    text = config.text
    hidden, heads, inner = text.hidden_size, text.num_heads * text.head_dim, text.intermediate_size
    rows = {"q": heads, "k": text.num_kv_heads * text.head_dim, "v": text.num_kv_heads * text.head_dim}
    weights.fill("decoder.embed_tokens", weights.read(f"{prefix}embed_tokens.weight", text.vocab_size, hidden))
    if not text.tied_embeddings:
        weights.fill("decoder.output", weights.read("lm_head.weight", text.vocab_size, hidden))
    weights.fill("decoder.norm.weight", weights.read(f"{prefix}norm.weight", hidden))
    for index in range(text.num_layers):
        theirs, ours = f"{prefix}layers.{index}", f"decoder.layers.{index}"
        weights.fill(f"{ours}.input_norm.weight", weights.read(f"{theirs}.input_layernorm.weight", hidden))
        for kind, columns in (("weight", (hidden,)), ("bias", ())):
            parts = [weights.read(f"{theirs}.self_attn.{x}_proj.{kind}", rows[x], *columns) for x in "qkv"]
            weights.fill(f"{ours}.qkv_proj.{kind}", *parts)
        weights.fill(f"{ours}.output_proj.weight", weights.read(f"{theirs}.self_attn.o_proj.weight", hidden, heads))
        weights.fill(f"{ours}.mlp_norm.weight", weights.read(f"{theirs}.post_attention_layernorm.weight", hidden))
        gate_up = [weights.read(f"{theirs}.mlp.{half}_proj.weight", inner, hidden) for half in ("gate", "up")]
        weights.fill(f"{ours}.mlp.gate_up_proj.weight", *gate_up)
        weights.fill(f"{ours}.mlp.down_proj.weight", weights.read(f"{theirs}.mlp.down_proj.weight", hidden, inner))


def _fill_vision(weights: WeightFiller, config: Qwen25VLConfig, prefix: str) -> None:
    vision = config.vision
    size, inner, patch = vision.hidden_size, vision.intermediate_size, vision.patch_size
    kernel = weights.read(f"{prefix}patch_embed.proj.weight", size, 3, vision.temporal_patch_size, patch, patch)
    weights.fill("vision.patch_embed.weight", kernel.flatten(1))
    for index in range(vision.num_layers):
        theirs, ours = f"{prefix}blocks.{index}", f"vision.blocks.{index}"
        weights.fill(f"{ours}.attention_norm.weight", weights.read(f"{theirs}.norm1.weight", size))
        weights.fill(f"{ours}.mlp_norm.weight", weights.read(f"{theirs}.norm2.weight", size))
        for kind, last in (("weight", 1), ("bias", 0)):  # last: how many dimensions follow the rows
            for our_name, their_name, rows, columns in (
                ("qkv_proj", "attn.qkv", 3 * size, size),
                ("output_proj", "attn.proj", size, size),
                ("mlp.down_proj", "mlp.down_proj", size, inner),
            ):
                tensor = weights.read(f"{theirs}.{their_name}.{kind}", rows, *[columns] * last)
                weights.fill(f"{ours}.{our_name}.{kind}", tensor)
            gate, up = (weights.read(f"{theirs}.mlp.{x}_proj.{kind}", inner, *[size] * last) for x in ("gate", "up"))
            weights.fill(f"{ours}.mlp.gate_up_proj.{kind}", gate, up)
    _fill_merger(weights, config, f"{prefix}merger.")


def _fill_merger(weights: WeightFiller, config: Qwen25VLConfig, prefix: str) -> None:
    unit = config.vision.hidden_size * config.vision.merge_size**2
    output = config.text.hidden_size
    weights.fill("vision.merger.norm.weight", weights.read(f"{prefix}ln_q.weight", config.vision.hidden_size))
    weights.fill("vision.merger.up_proj.weight", weights.read(f"{prefix}mlp.0.weight", unit, unit))
    weights.fill("vision.merger.up_proj.bias", weights.read(f"{prefix}mlp.0.bias", unit))
    weights.fill("vision.merger.down_proj.weight", weights.read(f"{prefix}mlp.2.weight", output, unit))
    weights.fill("vision.merger.down_proj.bias", weights.read(f"{prefix}mlp.2.bias", output))
