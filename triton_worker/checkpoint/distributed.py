"""Tensors of a torch distributed checkpoint, by name and by slice, without torch.distributed or megatron."""

from __future__ import annotations

import math
from collections.abc import Collection
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from triton_worker.checkpoint.archive import ArchivedTensor, DamagedArchive, NotATensor, find_tensor
from triton_worker.checkpoint.box_reader import read_box
from triton_worker.checkpoint.boxes import Box, box_of, cover, extent, moved, overlap, slices_of
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
        """`tensor[slices]` on the CPU; little else is read (see `read_box`). Steps other than 1 are not possible.

        Raises CheckpointError naming the file that is missing, truncated or damaged.
        """
        tensor = self._tensor(name)
        box = box_of(tensor.shape, slices)
        parts = [
            (chunk, part) for chunk in tensor.chunks if (part := overlap(box, chunk.offsets, chunk.shape)) is not None
        ]
        if not cover(box, [part for _, part in parts]):
            raise CheckpointError(f"{self.file_of(name)} is damaged: the chunks of {name!r} leave gaps or overlap.")
        if len(parts) == 1:  # Nothing to put together, so nothing to copy.
            return self._read_part(name, tensor.dtype, *parts[0])
        result = torch.empty(extent(box), dtype=tensor.dtype)
        for chunk, part in parts:
            values = self._read_part(name, tensor.dtype, chunk, part)
            result[slices_of(moved(part, [start for start, _ in box]))] = values
        return result

    def _tensor(self, name: str) -> StoredTensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self._directory / '.metadata'} lists no tensor {name!r}.")
        return self._tensors[name]

    def _read_part(self, name: str, dtype: torch.dtype, chunk: StoredChunk, part: Box) -> Tensor:
        """The part of the chunk; `part` is a box of the whole tensor."""
        path = self._directory / chunk.file
        try:
            with path.open("rb", buffering=0) as file:
                stored = find_tensor(file, chunk.start, chunk.length)
                found = stored.layout
                # megatron-core may store a chunk without the dimensions of size 1 that stacking puts in front.
                if found.dtype != dtype or found.numel() != math.prod(chunk.shape):
                    raise CheckpointError(
                        f"{path} holds {found.dtype} {list(found.shape)} where {name!r} is stored; "
                        f"its .metadata says {dtype} {list(chunk.shape)}."
                    )
                return _read_box_of(file, stored, chunk.shape, moved(part, chunk.offsets))
        except NotATensor:
            raise CheckpointError(f"{path} holds no plain tensor where {name!r} is stored.") from None
        except (DamagedArchive, OSError):
            raise CheckpointError(f"{path} is damaged or cannot be read where {name!r} is stored.") from None


def _read_box_of(file: FileIO, stored: ArchivedTensor, shape: tuple[int, ...], box: Box) -> Tensor:
    """The box of a tensor, taken as one of `shape`. One that does not lie row by row is read whole."""
    layout = stored.layout
    if layout.is_contiguous():
        return read_box(file, stored.start, shape, layout.dtype, box)
    count = layout.untyped_storage().nbytes() // layout.dtype.itemsize
    values = read_box(file, stored.start, [count], layout.dtype, [(0, count)])
    return values.as_strided(layout.shape, layout.stride()).reshape(shape)[slices_of(box)]
