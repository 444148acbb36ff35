"""Rotary position embeddings (arXiv:2104.09864) of Qwen2.5-VL: three-way for the decoder, two-way for the tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Rotary(NamedTuple):
    """What to turn each token's heads by. Both are [tokens, 1, head_dim].

    A vector's halves (a, b) become (a cos - b sin, b cos + a sin); the minus sign is kept in `signed_sin`.
    """

    cos: Tensor
    signed_sin: Tensor


def rotary_from_angles(angles: Tensor, dtype: torch.dtype) -> Rotary:
    """[tokens, head_dim / 2] float32 -> tables of `dtype`."""
    cos, sin = angles.cos(), angles.sin()
    return Rotary(
        torch.cat((cos, cos), dim=-1).unsqueeze(1).to(dtype),
        torch.cat((-sin, sin), dim=-1).unsqueeze(1).to(dtype),
    )


def apply_rotary(heads: Tensor, rotary: Rotary) -> Tensor:
    """[tokens, heads, head_dim], any float dtype -> the same, turned in the tables' precision if that is higher."""
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    return (heads * rotary.cos + swapped * rotary.signed_sin).to(heads.dtype)


def inverse_frequencies(size: int, theta: float, device: torch.device) -> Tensor:
    """For pair i of the size / 2 that turn together: theta ** (-2i / size), float32."""
    # Computed on the CPU, so that every device turns by the same angles.
    return (1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)).to(device)


class DecoderRotary:
    """mRoPE (arXiv:2409.12191): of the head's frequencies, the first turn with time, the next with row, then column."""

    def __init__(self, head_dim: int, theta: float, sections: Sequence[int], device: torch.device) -> None:
        self._frequencies = inverse_frequencies(head_dim, theta, device)
        axes = [axis for axis, count in enumerate(sections) for _ in range(count)]
        self._axis_of_frequency = torch.tensor(axes, device=device)

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> Rotary:
        """[3, tokens] int64 -> tables, made once per forward and shared by its layers."""
        angles = positions.to(torch.float32).t()[:, self._axis_of_frequency] * self._frequencies
        return rotary_from_angles(angles, dtype)


def vision_rotary(rows: Tensor, columns: Tensor, frequencies: Tensor) -> Rotary:
    """[patches] int64 each -> float32 tables; half of the angles turn with the row, the others with the column.

    frequencies: `inverse_frequencies(head_dim / 2, theta)`, used for both axes.
    """
    places = torch.stack((rows, columns), dim=-1).to(torch.float32)
    return rotary_from_angles((places.unsqueeze(-1) * frequencies).flatten(1), torch.float32)


def prompt_positions(
    token_ids: Sequence[int], grids: Sequence[tuple[int, int]], image_token_id: int
) -> tuple[Tensor, int]:
    """Positions of a prompt's tokens in time, row and column: int64 [3, tokens], and the first position after them.

    grids: rows and columns of embeddings of each picture, in order; each takes rows * columns image tokens.
    Text counts up in all three. A picture's tokens share one time, and rows and columns count from it; the text after
    it goes on behind the largest position used (Qwen2-VL, arXiv:2409.12191, section 2.1).
    Raises ValueError when the image tokens are not those that the grids ask for.
    """
    parts: list[Tensor] = []
    place, position = 0, 0
    for rows, columns in grids:
        start = _next_image_token(token_ids, image_token_id, place)
        end = start + rows * columns
        if any(token != image_token_id for token in token_ids[start:end]) or end > len(token_ids):
            raise ValueError(f"a picture of {rows} x {columns} embeddings needs {rows * columns} image tokens in a row")
        parts.append(_text_positions(position, start - place))
        position += start - place
        parts.append(_picture_positions(position, rows, columns))
        position += max(rows, columns)
        place = end
    if image_token_id in token_ids[place:]:
        raise ValueError("there are more image tokens than the pictures need")
    parts.append(_text_positions(position, len(token_ids) - place))
    return torch.cat(parts, dim=1), position + len(token_ids) - place


def _next_image_token(token_ids: Sequence[int], image_token_id: int, start: int) -> int:
    try:
        return token_ids.index(image_token_id, start)
    except ValueError:
        raise ValueError("there are fewer image tokens than the pictures need") from None


def _text_positions(first: int, count: int) -> Tensor:
    return torch.arange(first, first + count).expand(3, -1)


def _picture_positions(first: int, rows: int, columns: int) -> Tensor:
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    return torch.stack((torch.zeros_like(row), row, column)) + first
