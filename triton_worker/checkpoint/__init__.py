"""Reading NeMo 2.0 and Hugging Face checkpoints without running anything that is stored in them."""

from triton_worker.checkpoint.checkpoint import Checkpoint, TensorReader
from triton_worker.checkpoint.errors import CheckpointError
from triton_worker.checkpoint.open import open_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "TensorReader", "open_checkpoint"]
