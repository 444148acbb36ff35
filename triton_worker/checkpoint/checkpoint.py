"""What an opened checkpoint offers, whatever its layout on disk."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from triton_worker.checkpoint.errors import CheckpointError


class TensorReader(Protocol):
    """Named tensors on disk, read on demand and in part."""

    @property
    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str, *slices: slice) -> Tensor:
        """The tensor on the CPU, cut to `slices` (step 1) along its first dimensions. Raises CheckpointError."""
        ...

    def file_of(self, name: str) -> Path:
        """The file to name in an error about this tensor, also when it is missing."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found and whose configuration was read.

    path: the directory the user gave.
    layout: how it is stored; it decides which weight mapping of the family applies.
    family: the model family, a key of `triton_worker.models.registry`.
    config: the model's configuration as plain data: NeMo's `model` node, or the content of Hugging Face's config.json.
    tokenizer_directory: holds tokenizer.json or vocab.json and merges.txt.
    seq_length: the longest sequence, prompt and answer, in tokens.
    image_processor: the content of preprocessor_config.json, where one was stored.
    """

    path: Path
    layout: Literal["nemo", "huggingface"]
    family: str
    config: Mapping[str, Any]
    tokenizer_directory: Path
    seq_length: int
    weights: TensorReader
    image_processor: Mapping[str, Any] | None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises CheckpointError naming the file when it is missing or anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{path} cannot be read as JSON.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object at its top.")
    return content


def has_tokenizer_files(directory: Path) -> bool:
    """Whether a byte-level BPE tokenizer can be built from what `directory` holds."""
    if (directory / "tokenizer.json").is_file():
        return True
    return (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file()


def read_image_processor(directory: Path) -> dict[str, Any] | None:
    """The content of `directory`/preprocessor_config.json, or None where there is none."""
    path = directory / "preprocessor_config.json"
    return read_json_object(path) if path.exists() else None
