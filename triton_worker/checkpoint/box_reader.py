"""Reads a box of an array that lies row by row in a file, and little else of the file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from io import FileIO

import torch
from torch import Tensor

from triton_worker.checkpoint.boxes import Box, extent

# To read on costs less than to skip fewer bytes. With the columns of a matrix one by one, a cold disk gave a sixth.
_WORTH_SKIPPING = 2**20
# Whole rows, of which a part is kept, pass through a buffer of this size.
_BLOCK = 2 * 2**20


def read_box(file: FileIO, start: int, shape: Sequence[int], dtype: torch.dtype, box: Box) -> Tensor:
    """The box of an array of `shape` in C order, whose first byte is at `start` of `file`.

    Bytes between two parts of the box are read along where they are fewer than a megabyte. Raises OSError, also where
    the file ends too early.
    """
    result = torch.empty(extent(box), dtype=dtype)
    if result.numel() == 0:
        return result
    if not shape:
        shape, box = [1], [(0, 1)]
    # A run is what follows one another in the file and in the box: all behind the last dimension that is cut.
    cut = max((d for d, size in enumerate(shape) if box[d] != (0, size)), default=0)
    element = dtype.itemsize * math.prod(shape[cut + 1 :])
    first, stop = (element * bound for bound in box[cut])
    row = element * shape[cut]
    runs = result.reshape(-1).view(torch.uint8).view(-1, stop - first)
    if len(runs) == 1 or max(stop - first, row - (stop - first)) >= _WORTH_SKIPPING:
        for run, index in zip(runs, _indices(box[:cut], shape), strict=True):
            _read(file, start + index * row + first, run)
        return result
    block = torch.empty(max(1, _BLOCK // row), row, dtype=torch.uint8)
    done = 0
    for index, count in _stretches(box[:cut], shape, len(block)):
        _read(file, start + index * row, block[:count].view(-1))
        runs[done : done + count] = block[:count, first:stop]
        done += count
    return result


def _indices(box: Box, shape: Sequence[int]) -> Iterator[int]:
    """Numbers, in C order, of the rows in a box of the first dimensions of `shape`."""
    for place in itertools.product(*(range(*bounds) for bounds in box)):
        number = 0
        for index, size in zip(place, shape, strict=False):
            number = number * size + index
        yield number


def _stretches(box: Box, shape: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """The same rows as (first, count): up to `most` that follow one another."""
    start, stop = box[-1]
    for before in _indices(box[:-1], shape):
        for first in range(start, stop, most):
            yield before * shape[len(box) - 1] + first, min(most, stop - first)


def _read(file: FileIO, start: int, target: Tensor) -> None:
    """Fill `target`, bytes, from `start` of the file on."""
    view = target.numpy().data
    file.seek(start)
    while view:  # A call reads 2 GiB at most.
        count = file.readinto(view)
        if not count:
            raise OSError(f"{len(view)} bytes are missing")
        view = view[count:]
