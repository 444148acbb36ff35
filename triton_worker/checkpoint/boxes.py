"""Boxes: parts of a tensor, as start and stop along each dimension."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Box = list[tuple[int, int]]


def box_of(shape: tuple[int, ...], slices: tuple[slice, ...]) -> Box:
    """What `slices` select along the first dimensions of `shape`. Raises ValueError for steps other than 1."""
    if len(slices) > len(shape) or any(s.step not in (None, 1) for s in slices):
        raise ValueError(f"{slices} does not select a box of a tensor of shape {list(shape)}")
    padded = itertools.chain(slices, itertools.repeat(slice(None)))
    bounds = [s.indices(size)[:2] for s, size in zip(padded, shape, strict=False)]
    return [(start, max(start, stop)) for start, stop in bounds]


def extent(box: Box) -> list[int]:
    """The shape of what is in the box."""
    return [stop - start for start, stop in box]


def overlap(box: Box, offsets: Sequence[int], shape: Sequence[int]) -> Box | None:
    """What `box` and the box of `shape` at `offsets` have in common, if anything."""
    common = [
        (max(start, offset), min(stop, offset + size))
        for (start, stop), offset, size in zip(box, offsets, shape, strict=True)
    ]
    return common if all(start < stop for start, stop in common) else None


def moved(box: Box, origin: Sequence[int]) -> Box:
    """The same box as seen from `origin`."""
    return [(start - zero, stop - zero) for (start, stop), zero in zip(box, origin, strict=True)]


def slices_of(box: Box) -> tuple[slice, ...]:
    """What indexes a tensor with the box."""
    return tuple(slice(start, stop) for start, stop in box)


def cover(box: Box, parts: list[Box]) -> bool:
    """Whether the parts, all inside the box, cover it exactly once."""
    if sum(math.prod(extent(part)) for part in parts) != math.prod(extent(box)):
        return False
    return not any(
        all(max(a[0], b[0]) < min(a[1], b[1]) for a, b in zip(one, other, strict=True))
        for one, other in itertools.combinations(parts, 2)
    )
