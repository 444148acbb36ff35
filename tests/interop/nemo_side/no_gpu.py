"""Import before NeMo: what it and megatron-core ask of a GPU on their way to and from a checkpoint, on a CPU.

None of it computes anything that is compared, and none of NeMo's own code is replaced.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
# megatron-core would have torch compile its activation functions.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch


def _no_context(*arguments: Any, **more: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


# torchvision's own library is built for one build of torch; the package asks for these all the same when imported.
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

for name in ("synchronize", "empty_cache", "set_device", "Stream"):
    setattr(torch.cuda, name, lambda *arguments, **more: None)
torch.cuda.current_device = lambda: "cpu"
torch.cuda.is_initialized = lambda: True
torch.cuda.stream = _no_context

import megatron.core.tensor_parallel.random as parallel_random  # noqa: E402  (asks for the above)
import nemo.lightning.io.pl as nemo_io  # noqa: E402

parallel_random.CudaRNGStatesTracker.fork = _no_context
nemo_io._fix_tensors_device = lambda checkpoint: checkpoint  # moves what lies on another GPU
