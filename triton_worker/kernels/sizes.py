"""Sizes of grids and blocks. Triton's own `cdiv` and `next_power_of_2` take as long on the host as half a launch."""

from __future__ import annotations


def ceil_div(value: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-value // divisor)


def next_power_of_two(value: int) -> int:
    """The least power of two that is not less than `value`, which is positive."""
    return 1 << (value - 1).bit_length()
