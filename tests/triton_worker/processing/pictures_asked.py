"""What the tests of the families' prompts ask with."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from triton_worker.checkpoint import open_checkpoint
from triton_worker.models.registry import prompts_of
from triton_worker.processing.pictures import PictureLimits
from triton_worker.processing.processor import Processor


def processor_of(path: Path) -> Processor:
    opened = open_checkpoint(path)
    return Processor(opened, prompts_of(opened.family).prompt_format(opened), PictureLimits())


def png(height: int, width: int) -> bytes:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
