"""Fills Qwen2.5-VL from the tensors of a Hugging Face checkpoint, under the names of transformers 4 or of 5."""

from __future__ import annotations

import re
from collections.abc import Callable

from triton_worker.models.qwen2_5_vl.config import Qwen25VLConfig, TextConfig
from triton_worker.models.weights import WeightFiller
from triton_worker.parallel import DecoderShard, Ranks, heads_to_rows


def fill_from_huggingface(weights: WeightFiller, config: Qwen25VLConfig, shard: DecoderShard, ranks: Ranks) -> None:
    """Fill this rank's part. Raises CheckpointError where a tensor is missing, left over or not of its shape."""
    # The hub's files say model. and visual.; a model saved in transformers 4.52's own naming nests both.
    nested = weights.has("model.language_model.embed_tokens.weight")
    language, visual = ("model.language_model.", "model.visual.") if nested else ("model.", "visual.")
    _fill_ends(weights, config.text, shard, ranks, language)
    for place, index in enumerate(shard.layers):
        _fill_layer(weights, config.text, shard, f"decoder.layers.{place}", f"{language}layers.{index}")
    if ranks.is_first_stage:
        _fill_vision(weights, config, visual)
    is_elsewhere = _elsewhere(config.text, shard, ranks, language, visual)
    tied = config.text.tied_embeddings
    weights.finish(lambda name: name.endswith(".inv_freq") or (tied and name == "lm_head.weight") or is_elsewhere(name))


def _elsewhere(
    text: TextConfig, shard: DecoderShard, ranks: Ranks, language: str, visual: str
) -> Callable[[str], bool]:
    """Whether a tensor belongs to another stage, by name."""
    layer_name = re.compile(re.escape(language) + r"layers\.(\d+)\.")
    of_first = (f"{language}embed_tokens.weight", visual)
    of_last = (f"{language}norm.weight", "lm_head.weight")

    def is_elsewhere(name: str) -> bool:
        match = layer_name.match(name)
        if match is not None:
            index = int(match[1])
            return index < text.num_layers and index not in shard.layers
        return (not ranks.is_first_stage and name.startswith(of_first)) or (
            not ranks.is_last_stage and name.startswith(of_last)
        )

    return is_elsewhere


def _fill_ends(weights: WeightFiller, text: TextConfig, shard: DecoderShard, ranks: Ranks, prefix: str) -> None:
    """Embedding, output and the norm before it."""
    embedding, shape = f"{prefix}embed_tokens.weight", (text.vocab_size, text.hidden_size)
    if ranks.is_first_stage:
        weights.fill("decoder.embed_tokens.weight", weights.read(embedding, *shape, rows=shard.vocabulary))
    if not ranks.is_last_stage:
        return
    weights.fill("decoder.norm.weight", weights.read(f"{prefix}norm.weight", text.hidden_size))
    if not (text.tied_embeddings and ranks.is_first_stage):
        output = embedding if text.tied_embeddings else "lm_head.weight"
        weights.fill("decoder.output.weight", weights.read(output, *shape, rows=shard.vocabulary))


def _fill_layer(weights: WeightFiller, text: TextConfig, shard: DecoderShard, ours: str, theirs: str) -> None:
    hidden, inner = text.hidden_size, text.intermediate_size
    heads, kv_heads = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    query, key_value = (heads_to_rows(x, text.head_dim) for x in (shard.query_heads, shard.kv_heads))
    weights.fill(f"{ours}.input_norm.weight", weights.read(f"{theirs}.input_layernorm.weight", hidden))
    for kind, columns in (("weight", (hidden,)), ("bias", ())):
        parts = [
            weights.read(f"{theirs}.self_attn.{name}_proj.{kind}", count, *columns, rows=rows)
            for name, count, rows in (("q", heads, query), ("k", kv_heads, key_value), ("v", kv_heads, key_value))
        ]
        weights.fill(f"{ours}.qkv_proj.{kind}", *parts)
    output = weights.read(f"{theirs}.self_attn.o_proj.weight", hidden, heads, columns=query)
    weights.fill(f"{ours}.output_proj.weight", output)
    weights.fill(f"{ours}.mlp_norm.weight", weights.read(f"{theirs}.post_attention_layernorm.weight", hidden))
    gate_up = [
        weights.read(f"{theirs}.mlp.{half}_proj.weight", inner, hidden, rows=shard.intermediate)
        for half in ("gate", "up")
    ]
    weights.fill(f"{ours}.mlp.gate_up_proj.weight", *gate_up)
    down = weights.read(f"{theirs}.mlp.down_proj.weight", hidden, inner, columns=shard.intermediate)
    weights.fill(f"{ours}.mlp.down_proj.weight", down)


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
