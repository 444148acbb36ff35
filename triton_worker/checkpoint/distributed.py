"""Tensors of a torch distributed checkpoint, by name and by slice, without torch.distributed or megatron."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triton_worker.checkpoint.errors import CheckpointError
from triton_worker.checkpoint.metadata import StoredChunk, StoredTensor, read_metadata

# Other top-level keys hold optimizer state.
_MODEL_PREFIX = "module."


class DistributedCheckpoint:
    """The model's tensors in the `weights/` directory of a NeMo 2.0 checkpoint.

    Layers are stacked along a first dimension, and no tensor depends on the parallelism it was saved with: see
    megatron-core's dist_checkpointing. Optimizer state and Transformer Engine's `_extra_state` are left out.
    """

    def __init__(self, directory: Path) -> None:
        """Read the table of contents. Raises CheckpointError."""
        self._directory = directory
        self._tensors = {
            name: tensor
            for name, tensor in read_metadata(directory / ".metadata").items()
            if name.startswith(_MODEL_PREFIX) and "._extra_state" not in name
        }

    @property
    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._tensor(name).dtype

    def file_of(self, name: str) -> Path:
        return self._directory / ".metadata"

    def read(self, name: str, *slices: slice) -> Tensor:
        """`tensor[slices]` on the CPU; only the chunks that overlap it are read. Steps other than 1 are not possible.

        Raises CheckpointError naming the file that is missing, truncated or damaged.
        """
        tensor = self._tensor(name)
        bounds = _bounds(tensor.shape, slices)
        shape = [stop - start for start, stop in bounds]
        overlapping = [(chunk, overlap) for chunk in tensor.chunks if (overlap := _overlap(bounds, chunk)) is not None]
        if not _cover(math.prod(shape), [overlap for _, overlap in overlapping]):
            raise CheckpointError(f"{self.file_of(name)} is damaged: the chunks of {name!r} leave gaps or overlap.")
        if len(overlapping) == 1:  # Nothing to put together, so nothing to copy.
            chunk, overlap = overlapping[0]
            return self._read_chunk(name, tensor.dtype, chunk)[_relative(overlap, chunk.offsets)]
        result = torch.empty(shape, dtype=tensor.dtype)
        for chunk, overlap in overlapping:
            part = self._read_chunk(name, tensor.dtype, chunk)[_relative(overlap, chunk.offsets)]
            result[_relative(overlap, [start for start, _ in bounds])] = part
        return result

    def _tensor(self, name: str) -> StoredTensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self._directory / '.metadata'} lists no tensor {name!r}.")
        return self._tensors[name]

    def _read_chunk(self, name: str, dtype: torch.dtype, chunk: StoredChunk) -> Tensor:
        path = self._directory / chunk.file
        try:
            with path.open("rb") as file:
                archive = _FileSection(file, chunk.start, chunk.length)
                value = torch.load(archive, map_location="cpu", weights_only=True)  # type: ignore[arg-type]
        except Exception:  # torch.load raises several types on bytes that are not an archive.
            raise CheckpointError(f"{path} is damaged or cannot be read where {name!r} is stored.") from None
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise CheckpointError(f"{path} holds no plain tensor where {name!r} is stored.")
        # megatron-core may store a chunk without the dimensions of size 1 that stacking puts in front.
        if value.dtype != dtype or value.numel() != math.prod(chunk.shape):
            raise CheckpointError(
                f"{path} holds {value.dtype} {list(value.shape)} where {name!r} is stored; "
                f"its .metadata says {dtype} {list(chunk.shape)}."
            )
        return value.detach().reshape(chunk.shape)


class _FileSection(io.RawIOBase):
    """A part of a file as a file of its own, so that torch reads a chunk straight into its tensor."""

    def __init__(self, file: io.BufferedReader, start: int, length: int) -> None:
        super().__init__()
        self._file = file
        self._start = start
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._length - self._position)]
        self._file.seek(self._start + self._position)
        count = self._file.readinto(view)
        self._position += count
        return count


_Box = list[tuple[int, int]]  # start and stop in each dimension


def _bounds(shape: tuple[int, ...], slices: tuple[slice, ...]) -> _Box:
    if len(slices) > len(shape) or any(s.step not in (None, 1) for s in slices):
        raise ValueError(f"{slices} does not select a box of a tensor of shape {list(shape)}")
    padded = itertools.chain(slices, itertools.repeat(slice(None)))
    bounds = [s.indices(size)[:2] for s, size in zip(padded, shape, strict=False)]
    return [(start, max(start, stop)) for start, stop in bounds]


def _overlap(bounds: _Box, chunk: StoredChunk) -> _Box | None:
    overlap = [
        (max(start, offset), min(stop, offset + size))
        for (start, stop), offset, size in zip(bounds, chunk.offsets, chunk.shape, strict=True)
    ]
    return overlap if all(start < stop for start, stop in overlap) else None


def _relative(box: _Box, origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start - zero, stop - zero) for (start, stop), zero in zip(box, origin, strict=True))


def _cover(elements: int, boxes: list[_Box]) -> bool:
    """Whether the boxes, all inside one of `elements` elements, cover it exactly once."""
    if sum(math.prod(stop - start for start, stop in box) for box in boxes) != elements:
        return False
    return not any(
        all(max(a[0], b[0]) < min(a[1], b[1]) for a, b in zip(one, other, strict=True))
        for one, other in itertools.combinations(boxes, 2)
    )
