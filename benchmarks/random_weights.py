"""Random weights that depend on their names alone: the same on every rank, in our model and in transformers'."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

from triton_worker.models.weights import WeightFiller


def random_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of a size that keeps activations finite in any dtype: products keep their input's variance, norms are near 1.

    ``name``: as the files of Hugging Face's hub call the tensor. Depends on ``dtype`` and the kind of ``device`` too.
    """
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    if len(shape) == 1:
        return values * 0.1 + (1.0 if "norm" in name or "ln_q" in name else 0.0)
    return values / values[0].numel() ** 0.5


class RandomWeights(WeightFiller):
    """Fills a model, cut for its rank as a checkpoint's weights are."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        super().__init__(model, _NoTensors(), None)  # type: ignore[arg-type]

    def read(self, name: str, *shape: int, rows: range | None = None, columns: range | None = None) -> Tensor:
        """The part asked for of a random tensor."""
        whole = random_tensor(name, shape, self._dtype, self._device)
        whole = whole if rows is None else whole[rows.start : rows.stop]
        return whole if columns is None else whole[:, columns.start : columns.stop]


class _NoTensors:
    names = ()


def fill_huggingface(model: nn.Module) -> None:
    """Give transformers' model the weights that ours gets."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
            parameter.copy_(random_tensor(name, tuple(parameter.shape), parameter.dtype, parameter.device))
