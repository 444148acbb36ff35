"""Positions of Qwen2-VL and Qwen2.5-VL: in time, row and column for the decoder, in row and column for the tower."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from triton_worker.models.decoder.rope import Rotary, rotary_from_angles


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
    positions = np.empty((3, len(token_ids)), dtype=np.int64)
    place, position = 0, 0
    for rows, columns in grids:
        start = _next_image_token(token_ids, image_token_id, place)
        end = start + rows * columns
        if end > len(token_ids) or any(token != image_token_id for token in token_ids[start:end]):
            raise ValueError(f"a picture of {rows} x {columns} embeddings needs {rows * columns} image tokens in a row")
        positions[:, place:start] = np.arange(position, position + start - place)
        position += start - place
        positions[0, start:end] = position
        positions[1, start:end] = position + np.arange(rows).repeat(columns)
        positions[2, start:end] = position + np.tile(np.arange(columns), rows)
        position += max(rows, columns)
        place = end
    if image_token_id in token_ids[place:]:
        raise ValueError("there are more image tokens than the pictures need")
    rest = len(token_ids) - place
    positions[:, place:] = np.arange(position, position + rest)
    return torch.from_numpy(positions), position + rest


def _next_image_token(token_ids: Sequence[int], image_token_id: int, start: int) -> int:
    try:
        return token_ids.index(image_token_id, start)
    except ValueError:
        raise ValueError("there are fewer image tokens than the pictures need") from None
