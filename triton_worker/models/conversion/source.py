"""Reads a checkpoint of either layout parameter by parameter, by the same code that fills a model with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.models.interface import Progress
from triton_worker.models.registry import FamilyModule
from triton_worker.models.weights import WeightStream
from triton_worker.parallel import Ranks


@dataclass(frozen=True)
class Parameter:
    """A parameter of our model, by its name there, as it is stored."""

    name: str
    values: Tensor

    @property
    def layer(self) -> int:
        """Of a parameter in a layer: which one."""
        return int(self.name.split(".")[2])

    @property
    def in_layer(self) -> str:
        """Of a parameter in a layer: its name there, without weight or bias."""
        return ".".join(self.name.split(".")[3:-1])

    @property
    def module(self) -> str:
        """Its name without weight or bias."""
        return self.name.rpartition(".")[0]

    @property
    def kind(self) -> str:
        """``weight`` or ``bias``."""
        return self.name.rpartition(".")[2]


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of the language model's embedding, which stands for the whole."""
    nested = ("embedding.word_embeddings.weight", "embed_tokens.weight")
    return checkpoint.weights.dtype(next(name for name in checkpoint.weights.names if name.endswith(nested)))


def stream_parameters(
    checkpoint: Checkpoint,
    family: FamilyModule,
    config: Any,
    take: Callable[[Parameter], None],
    progress: Progress | None,
) -> None:
    """Hand on every parameter once. Raises CheckpointError where a tensor is missing, left over or not of its shape."""
    # On the meta device a model is no more than its parameters' names and shapes.
    model = family.build_model(config, Ranks(), dtype=stored_dtype(checkpoint), device=torch.device("meta"))
    weights = WeightStream(model, checkpoint.weights, lambda name, values: take(Parameter(name, values)), progress)
    family.fill_weights(weights, checkpoint.layout, model)


def qkv_parts(values: Tensor, query_rows: int) -> list[Tensor]:
    """Query, key and value rows of a fused projection, key and value of equal size."""
    others = (len(values) - query_rows) // 2
    return list(torch.split(values, [query_rows, others, others]))
