"""The demo model: its sizes, and a forward pass for training on many pictures of one size at once.

The parameters live in Hugging Face's own Qwen2.5-VL module and keep its names. Its forward pass walks over attention
windows in a Python loop, which is far too slow to train with; here a window is a mask, and a whole batch is one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from examples.demo_model.tokenizer import VOCABULARY_SIZE

PATCH, MERGE, WINDOW = 14, 2, 112
# CLIP's, as in Qwen2VLImageProcessor.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def demo_config(token_ids: dict[str, int]) -> Qwen2_5_VLConfig:
    """A model of 3.7 million parameters. `token_ids` maps the special tokens to their ids.

    Head dim 128 and window 112 are what NeMo 2.0 fixes; two key-value heads let it be split over two GPUs.
    """
    text = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "bos_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": token_ids["<|im_end|>"],
    }
    vision = {
        "depth": 6,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_heads": 4,
        "hidden_act": "silu",
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "window_size": WINDOW,
        "out_hidden_size": 256,
        "fullatt_block_indexes": [2, 5],
    }
    names = ("image", "video", "vision_start", "vision_end")
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids: dict[str, Any] = {f"{name}_token_id": token_ids[token] for name, token in zip(names, tokens, strict=True)}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


@dataclass
class Batch:
    """Conversations about N pictures of one grid, G merged units (28 pixels a side) each.

    pixels: uint8 [N, 3, height, width]; ids, branch: int64 [B, S]; positions: int64 [3, B, S].
    image_slots: int64 [N * G], where the pictures' embeddings go in the flattened [B * S].
    predicting, targets, answer: int64 [L], for each token to learn: the place in [B * S] which predicts it, the token,
    and the number of the answer that it belongs to.
    A token sees what comes before it in branch 0, which all branches share, and in its own branch.
    """

    pixels: Tensor
    ids: Tensor
    branch: Tensor
    positions: Tensor
    image_slots: Tensor
    predicting: Tensor
    targets: Tensor
    answer: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


def training_loss(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of the tokens to learn, and the share of answers which are wholly right; float32 scalars.

    Greedy decoding gives the right answer exactly where every token is the likeliest one after the right tokens before
    it, so the share is the accuracy on pictures that were never seen.
    """
    hidden = decode(model, batch).flatten(0, 1).index_select(0, batch.predicting)
    logits = functional.linear(hidden, model.lm_head.weight).float()
    wrong = (logits.detach().argmax(-1) != batch.targets).float()
    answers = torch.zeros(2, len(batch.targets), device=hidden.device)
    answers[0].index_add_(0, batch.answer, torch.ones_like(wrong))
    answers[1].index_add_(0, batch.answer, wrong)
    accuracy = 1 - (answers[1] > 0).sum() / (answers[0] > 0).sum()
    return functional.cross_entropy(logits, batch.targets), accuracy


def decode(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> Tensor:
    """The decoder's normed output, [B, S, hidden]."""
    language = model.model.language_model
    hidden = language.embed_tokens(batch.ids)
    if len(batch.pixels):
        features = see(model, batch.pixels).to(hidden.dtype)
        flat = hidden.flatten(0, 1).index_copy(0, batch.image_slots, features)
        hidden = flat.view_as(hidden)
    cos, sin = _text_angles(batch.positions, model.config.text_config)
    bias = _bias(_branch_mask(batch.branch), hidden.device)
    for layer in language.layers:
        hidden = hidden + _text_attention(layer.self_attn, _normed(layer.input_layernorm, hidden), cos, sin, bias)
        hidden = hidden + layer.mlp(_normed(layer.post_attention_layernorm, hidden))
    return _normed(language.norm, hidden)


def see(model: Qwen2_5_VLForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The pictures' visual tokens, [N * G, hidden], from uint8 pixels [N, 3, height, width]."""
    visual = model.model.visual
    grid = (pixels.shape[2] // PATCH, pixels.shape[3] // PATCH)
    # A still picture fills both frames of a temporal patch, so the two halves of the filter may be added first.
    filters = visual.patch_embed.proj.weight.sum(2).flatten(1)
    # The residual stream stays in float32 when autocast runs the products in bfloat16.
    hidden = functional.linear(_patches(pixels), filters).float()
    rows, columns, windows = (index.to(pixels.device) for index in _patch_layout(*grid))
    cos, sin = _vision_angles(rows, columns, visual.config.hidden_size // visual.config.num_heads)
    window_bias = _bias((windows[:, None] == windows[None, :])[None, None], hidden.device)
    for index, block in enumerate(visual.blocks):
        bias = None if index in visual.fullatt_block_indexes else window_bias
        hidden = hidden + _vision_attention(block.attn, _normed(block.norm1, hidden), cos, sin, bias)
        hidden = hidden + block.mlp(_normed(block.norm2, hidden))
    merged = _normed(visual.merger.ln_q, hidden).reshape(-1, visual.merger.hidden_size)
    features: Tensor = visual.merger.mlp(merged)
    return features


def _patches(pixels: Tensor) -> Tensor:
    """Normalised patches [N, P, 3 * 14 * 14] in the image processor's order: the four of a unit follow each other."""
    mean = torch.tensor(PIXEL_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(PIXEL_STD, device=pixels.device).view(1, 3, 1, 1)
    values = (pixels.float() / 255.0 - mean) / std
    count, _, height, width = values.shape
    unit = PATCH * MERGE
    tiles = values.view(count, 3, height // unit, MERGE, PATCH, width // unit, MERGE, PATCH)
    return tiles.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(count, -1, 3 * PATCH * PATCH)


@lru_cache(maxsize=512)
def _patch_layout(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and window number of each patch, int64 [P] each, for a grid of patches."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    in_units = [
        index.view(height // MERGE, MERGE, width // MERGE, MERGE).transpose(1, 2).flatten() for index in (rows, columns)
    ]
    side = WINDOW // PATCH
    windows = in_units[0] // side * (width // side + 1) + in_units[1] // side
    return in_units[0], in_units[1], windows


def _vision_angles(rows: Tensor, columns: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [P, head_dim] of the two-dimensional rotary embedding with base 10,000."""
    quarter = torch.arange(0, head_dim // 2, 2, device=rows.device).float() / (head_dim // 2)
    frequencies = 10_000.0**-quarter
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=-1).repeat(1, 2)
    return angles.cos(), angles.sin()


def _text_angles(positions: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, S, head_dim] from time, row and column positions [3, B, S]."""
    head_dim = config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    angles = positions[..., None] * config.rope_parameters["rope_theta"] ** -exponents
    sections = angles.split(config.rope_parameters["mrope_section"], dim=-1)
    mixed = torch.cat([section[axis] for axis, section in enumerate(sections)], dim=-1).repeat(1, 1, 2)
    return mixed.cos()[:, None], mixed.sin()[:, None]


def _branch_mask(branch: Tensor) -> Tensor:
    """Which token sees which, bool [B, 1, S, S]."""
    length = branch.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    shared = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    return (shared & earlier)[:, None]


def _bias(allowed: Tensor, device: torch.device) -> Tensor:
    """What is added to the attention scores. Finite, since fused kernels may turn a block of -inf into NaN."""
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, -30_000.0)


def _text_attention(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
    batch, length, _ = hidden.shape
    query, key, value = (
        projection(hidden).view(batch, length, -1, attention.head_dim).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
    grouped = attention.num_key_value_groups > 1
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=grouped)
    output: Tensor = attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return output


def _vision_attention(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None) -> Tensor:
    count, length, _ = hidden.shape
    query, key, value = (
        attention.qkv(hidden).view(count, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    )
    query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    output: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
    return output


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.float().chunk(2, dim=-1)
    return (states * cos + torch.cat([-second, first], dim=-1) * sin).to(states.dtype)


def _normed(norm: Any, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
