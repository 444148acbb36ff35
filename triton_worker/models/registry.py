"""From the family that a checkpoint names to the code that runs it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.models.interface import MultimodalModel, Progress
from triton_worker.models.weights import WeightFiller
from triton_worker.parallel import Ranks
from triton_worker.processing.prompt_format import PromptFormat
from triton_worker.processing.tokenizer import TokenizerFormat

FAMILIES = {
    "llava": "triton_worker.models.llava",
    "mllama": "triton_worker.models.mllama",
    "qwen2_vl": "triton_worker.models.qwen2_vl",
    "qwen2_5_vl": "triton_worker.models.qwen2_5_vl",
}
"""Where each family's code is, imported when first asked for: a `FamilyModule` with modules `conversion`, `prompts`."""


class UnknownModelFamily(Exception):
    """No code of ours runs this family; the message names those that exist."""


class Conversion(Protocol):
    """A family's way from one layout of checkpoints to another: its module `conversion`.

    Both write to a directory that does not exist yet, and raise CheckpointError for what cannot be converted.
    """

    def write_nemo(self, source: Checkpoint, directory: Path, progress: Progress | None = None) -> None: ...
    def write_huggingface(self, source: Checkpoint, directory: Path, progress: Progress | None = None) -> None: ...


class Prompts(Protocol):
    """What a family says about its prompts: its module `prompts`."""

    TOKENIZER: TokenizerFormat

    def prompt_format(
        self, checkpoint: Checkpoint, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> PromptFormat:
        """min_pixels, max_pixels: the flags' bounds on a picture's size. Raises PictureBoundsError."""
        ...


class FamilyModule(Protocol):
    """What a family's module offers. Its configuration is known to itself alone."""

    def read_config(self, checkpoint: Checkpoint) -> Any:
        """Raises CheckpointError where the checkpoint lacks a size, or holds one that the model cannot have."""
        ...

    def build_model(self, config: Any, ranks: Ranks, *, dtype: torch.dtype, device: torch.device) -> Any:
        """A `MultimodalModel` and `nn.Module`, of it this rank's part, with parameters that are yet to be filled."""
        ...

    def fill_weights(self, weights: WeightFiller, layout: Literal["nemo", "huggingface"], model: Any) -> None:
        """Fill such a model. Raises CheckpointError where a tensor is missing, left over or not of its shape."""
        ...


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> MultimodalModel:
    """Build this rank's part of the checkpoint's model on `device` with parameters of `dtype`, and fill it.

    Without `ranks` that is all of it. Of the weights only this rank's part is read. Raises UnknownModelFamily,
    ParallelismError, and CheckpointError when weights and configuration do not fit together.
    """
    family = cast(FamilyModule, importlib.import_module(_family(checkpoint.family)))
    model = family.build_model(family.read_config(checkpoint), ranks or Ranks(), dtype=dtype, device=device)
    family.fill_weights(WeightFiller(model, checkpoint.weights, progress), checkpoint.layout, model)
    return cast(MultimodalModel, model)


def conversion_of(family: str) -> Conversion:
    """Raises UnknownModelFamily."""
    return cast(Conversion, importlib.import_module(f"{_family(family)}.conversion"))


def prompts_of(family: str) -> Prompts:
    """Raises UnknownModelFamily."""
    return cast(Prompts, importlib.import_module(f"{_family(family)}.prompts"))


def _family(name: str) -> str:
    if name not in FAMILIES:
        raise UnknownModelFamily(f"No model family {name!r}; this engine runs: {', '.join(sorted(FAMILIES))}.")
    return FAMILIES[name]
