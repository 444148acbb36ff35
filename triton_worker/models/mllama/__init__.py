"""Llama 3.2 Vision (arXiv:2407.21783, section 7), which Hugging Face and NeMo call MLlama."""

from __future__ import annotations

from typing import Literal

import torch

from triton_worker.models.mllama.config import MllamaConfig, read_config
from triton_worker.models.mllama.model import Mllama
from triton_worker.models.mllama.weights import fill_from_huggingface, fill_from_nemo
from triton_worker.models.weights import WeightFiller
from triton_worker.parallel import Ranks

__all__ = ["build_model", "fill_weights", "read_config"]


def build_model(config: MllamaConfig, ranks: Ranks, *, dtype: torch.dtype, device: torch.device) -> Mllama:
    return Mllama(config, ranks, dtype=dtype, device=device)


def fill_weights(weights: WeightFiller, layout: Literal["nemo", "huggingface"], model: Mllama) -> None:
    fill = fill_from_nemo if layout == "nemo" else fill_from_huggingface
    fill(weights, model)
