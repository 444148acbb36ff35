"""Qwen2-VL (arXiv:2409.12191)."""

from __future__ import annotations

from typing import Literal

import torch

from triton_worker.models.qwen2_vl.config import Qwen2VLConfig, read_config
from triton_worker.models.qwen2_vl.vision import VisionTower
from triton_worker.models.qwen_vl.model import QwenVL
from triton_worker.models.qwen_vl.weights import fill_from_huggingface, fill_from_nemo
from triton_worker.models.weights import WeightFiller
from triton_worker.parallel import Ranks

__all__ = ["BLOCK_MODULES", "build_model", "fill_weights", "read_config"]

BLOCK_MODULES = {
    "attention_norm": ("norm1",),
    "qkv_proj": ("attn.qkv",),
    "output_proj": ("attn.proj",),
    "mlp_norm": ("norm2",),
    "mlp.up_proj": ("mlp.fc1",),
    "mlp.down_proj": ("mlp.fc2",),
}
"""The modules of the tower's blocks by our names, as Hugging Face calls them."""


def build_model(config: Qwen2VLConfig, ranks: Ranks, *, dtype: torch.dtype, device: torch.device) -> QwenVL:
    def tower() -> VisionTower:
        return VisionTower(config.vision, config.text.hidden_size, dtype=dtype, device=device)

    return QwenVL(config, tower, ranks, dtype=dtype, device=device)


def fill_weights(weights: WeightFiller, layout: Literal["nemo", "huggingface"], model: QwenVL) -> None:
    if layout == "nemo":
        fill_from_nemo(weights, model)
    else:
        fill_from_huggingface(weights, model, BLOCK_MODULES)
