"""LLaVA-1.5 (arXiv:2310.03744), which NeMo calls NeVA."""

from __future__ import annotations

from typing import Literal

import torch

from triton_worker.models.llava.config import LlavaConfig, read_config
from triton_worker.models.llava.model import Llava
from triton_worker.models.llava.weights import fill_from_huggingface, fill_from_nemo
from triton_worker.models.weights import WeightFiller
from triton_worker.parallel import Ranks

__all__ = ["build_model", "fill_weights", "read_config"]


def build_model(config: LlavaConfig, ranks: Ranks, *, dtype: torch.dtype, device: torch.device) -> Llava:
    return Llava(config, ranks, dtype=dtype, device=device)


def fill_weights(weights: WeightFiller, layout: Literal["nemo", "huggingface"], model: Llava) -> None:
    fill = fill_from_nemo if layout == "nemo" else fill_from_huggingface
    fill(weights, model)
