"""From the family that a checkpoint names to the code that runs it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.models.interface import MultimodalModel, Progress
from triton_worker.parallel import Ranks


@dataclass(frozen=True)
class Family:
    """module: where its code is, imported when first asked for. picture_unit: see `MultimodalModel.picture_unit`."""

    module: str
    picture_unit: int


FAMILIES = {"qwen2_5_vl": Family("triton_worker.models.qwen2_5_vl", picture_unit=28)}


class UnknownModelFamily(Exception):
    """No code of ours runs this family; the message names those that exist."""


class Conversion(Protocol):
    """A family's way from one layout of checkpoints to another: its module `conversion`.

    Both write to a directory that does not exist yet, and raise CheckpointError for what cannot be converted.
    """

    def write_nemo(self, source: Checkpoint, directory: Path, progress: Progress | None = None) -> None: ...
    def write_huggingface(self, source: Checkpoint, directory: Path, progress: Progress | None = None) -> None: ...


class _Module(Protocol):
    def load_model(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, progress: Progress | None, ranks: Ranks
    ) -> MultimodalModel: ...


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
    module = cast(_Module, importlib.import_module(_family(checkpoint.family).module))
    return module.load_model(checkpoint, dtype, device, progress, ranks or Ranks())


def conversion_of(family: str) -> Conversion:
    """Raises UnknownModelFamily."""
    return cast(Conversion, importlib.import_module(f"{_family(family).module}.conversion"))


def picture_unit(family: str) -> int:
    """Side, in pixels, of the square that one picture embedding stands for. Raises UnknownModelFamily."""
    return _family(family).picture_unit


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise UnknownModelFamily(f"No model family {name!r}; this engine runs: {', '.join(sorted(FAMILIES))}.")
    return FAMILIES[name]
