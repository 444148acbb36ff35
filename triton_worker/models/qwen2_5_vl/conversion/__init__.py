"""Qwen2.5-VL from one layout of checkpoints to another, tensor by tensor and bit for bit."""

from triton_worker.models.qwen2_5_vl.conversion.huggingface import write_huggingface
from triton_worker.models.qwen2_5_vl.conversion.nemo import write_nemo

__all__ = ["write_huggingface", "write_nemo"]
