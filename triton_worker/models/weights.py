"""Fills a model's parameters from a checkpoint's tensors and keeps account of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from triton_worker.checkpoint.checkpoint import TensorReader
from triton_worker.checkpoint.errors import CheckpointError
from triton_worker.models.interface import Progress
from triton_worker.models.layers import align_products


class WeightFiller:
    """Sees to it that every parameter is filled exactly once and that no tensor of the checkpoint is overlooked."""

    def __init__(self, model: nn.Module, reader: TensorReader, progress: Progress | None) -> None:
        self._model = model
        self._unfilled = dict(model.named_parameters())
        self._unread = set(reader.names)
        self._reader = reader
        self._progress = progress
        self._bytes_done = 0
        self._bytes_total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of this name."""
        return name in self._reader.names

    def unfilled(self, prefix: str) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the parameters under `prefix` that are yet to be filled."""
        return [(name, tuple(value.shape)) for name, value in self._unfilled.items() if name.startswith(prefix)]

    def fill_modules(self, ours: str, theirs: str, modules: Mapping[str, tuple[str, ...]]) -> None:
        """Fill the parameters under `ours` from the tensors under `theirs` that each module is made of, row by row.

        Raises CheckpointError where a tensor is missing or not of its shape.
        """
        for name, (rows, *columns) in self.unfilled(ours):
            module, _, kind = name.removeprefix(ours).rpartition(".")
            parts = modules[module]
            self.fill(name, *(self.read(f"{theirs}{part}.{kind}", rows // len(parts), *columns) for part in parts))

    def read(self, name: str, *shape: int, rows: range | None = None, columns: range | None = None) -> Tensor:
        """The checkpoint's tensor `name`, or these rows and columns of it; nothing else is read.

        Raises CheckpointError unless it is there and has `shape`.
        """
        self._check(name, shape)
        return self._reader.read(name, *_slices(rows, columns))

    def read_layer(
        self, name: str, index: int, *shape: int, rows: range | None = None, columns: range | None = None
    ) -> Tensor:
        """The same of `tensor[index]`, where the checkpoint's tensor `name` is a stack of `shape`."""
        self._check(name, shape)
        return self._reader.read(name, slice(index, index + 1), *_slices(rows, columns)).squeeze(0)

    def fill(self, parameter: str, *parts: Tensor) -> None:
        """Copy `parts`, one below the other, into the parameter, converting to its dtype and device."""
        target = self._unfilled.pop(parameter)
        start = 0
        for part in parts:
            target.data[start : start + len(part)].copy_(part)
            start += len(part)
        if start != len(target):
            raise ValueError(f"{parameter} has {len(target)} rows, {start} were given")
        self._count(target)

    def _count(self, target: nn.Parameter) -> None:
        self._bytes_done += target.numel() * target.element_size()
        if self._progress is not None:
            self._progress(self._bytes_done, self._bytes_total)

    def finish(self, ignorable: Callable[[str], bool] = lambda name: False) -> None:
        """All is filled. Raise CheckpointError if the checkpoint has a tensor that was not read and is not ignorable.

        What another rank reads is ignorable to this one: together they have looked at every tensor.
        """
        if self._unfilled:
            raise ValueError(f"not filled: {', '.join(sorted(self._unfilled))}")
        for name in sorted(self._unread):
            if not ignorable(name):
                raise CheckpointError(
                    f"{self._reader.file_of(name)} holds a tensor {name!r} of shape {list(self._reader.shape(name))} "
                    f"that the configured model has no place for."
                )
        align_products(self._model)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if not self.has(name):
            raise CheckpointError(
                f"{self._reader.file_of(name)} lacks the tensor {name!r}; shape {list(shape)} was expected."
            )
        found = self._reader.shape(name)
        if found != shape:
            raise CheckpointError(
                f"{self._reader.file_of(name)} holds {name!r} with shape {list(found)}; the model's configuration asks "
                f"for {list(shape)}."
            )
        self._unread.discard(name)


class WeightStream(WeightFiller):
    """Hands each parameter's values on, as they are stored, instead of filling a model with them."""

    def __init__(
        self,
        model: nn.Module,
        reader: TensorReader,
        take: Callable[[str, Tensor], None],
        progress: Progress | None,
    ) -> None:
        """``model``: only its parameters' names and shapes matter; it may be on the meta device."""
        super().__init__(model, reader, progress)
        self._take = take

    def fill(self, parameter: str, *parts: Tensor) -> None:
        """Hand `parts`, joined one below the other, on under the parameter's name."""
        target = self._unfilled.pop(parameter)
        self._take(parameter, parts[0] if len(parts) == 1 else torch.cat(parts))
        self._count(target)


def _slices(rows: range | None, columns: range | None) -> tuple[slice, ...]:
    chosen = [slice(None) if part is None else slice(part.start, part.stop) for part in (rows, columns)]
    return tuple(chosen if columns is not None else chosen[:1] if rows is not None else ())
