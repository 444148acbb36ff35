"""Qwen2.5-VL (arXiv:2502.13923)."""

from __future__ import annotations

import torch

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.models.interface import Progress
from triton_worker.models.qwen2_5_vl.config_huggingface import config_from_huggingface
from triton_worker.models.qwen2_5_vl.config_nemo import config_from_nemo
from triton_worker.models.qwen2_5_vl.model import Qwen25VL
from triton_worker.models.qwen2_5_vl.weights_huggingface import fill_from_huggingface
from triton_worker.models.qwen2_5_vl.weights_nemo import fill_from_nemo
from triton_worker.models.weights import WeightFiller
from triton_worker.parallel import Ranks


def load_model(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, progress: Progress | None, ranks: Ranks
) -> Qwen25VL:
    """Build this rank's part of the model that `checkpoint` describes. Raises CheckpointError and ParallelismError."""
    nemo = checkpoint.layout == "nemo"
    config = config_from_nemo(checkpoint) if nemo else config_from_huggingface(checkpoint)
    model = Qwen25VL(config, ranks, dtype=dtype, device=device)
    weights = WeightFiller(model, checkpoint.weights, progress)
    if nemo:
        fill_from_nemo(weights, config, model.shard, ranks)
    else:
        fill_from_huggingface(weights, config, model.shard, ranks)
    return model
