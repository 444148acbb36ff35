"""What the benchmarks' options take on the command line."""

from __future__ import annotations


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between."""
    return [int(number) for number in text.split(",")]


def size(text: str) -> tuple[int, int]:
    """Width and height, as in 1036x728."""
    width, height = (int(side) for side in text.split("x"))
    return width, height
