from __future__ import annotations

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.triton_worker.models.reference import HF_FIXTURE
from triton_worker.models.qwen_vl.positions import prompt_positions

IMAGE = 412


def their_positions(token_ids: list[int], grids: list[tuple[int, int]]) -> torch.Tensor:
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(HF_FIXTURE))
    ids = torch.tensor([token_ids])
    grid_thw = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids]) if grids else None
    positions, _ = model.model.get_rope_index(ids, (ids == IMAGE).int(), grid_thw)
    return positions[:, 0]


@pytest.mark.parametrize(
    "parts",
    [
        [3],
        [3, (2, 5), 4],
        [(4, 1), 2],
        [2, (3, 3)],
        [1, (1, 1), 1, (7, 2), 6, (2, 9), 1],
    ],
    ids=str,
)
def test_prompt_positions_equal_transformers(parts: list[int | tuple[int, int]]) -> None:
    token_ids: list[int] = []
    for part in parts:
        token_ids += [7] * part if isinstance(part, int) else [IMAGE] * (part[0] * part[1])
    grids = [part for part in parts if isinstance(part, tuple)]
    positions, next_position = prompt_positions(token_ids, grids, IMAGE)
    assert positions.dtype == torch.int64
    assert torch.equal(positions, their_positions(token_ids, grids))
    assert next_position == int(positions.max()) + 1


def test_pictures_side_by_side_are_told_apart() -> None:
    positions, next_position = prompt_positions([IMAGE] * 4, [(1, 2), (1, 2)], IMAGE)
    assert positions.tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [0, 1, 2, 3]]
    assert next_position == 4


@pytest.mark.parametrize(
    ("token_ids", "grids"),
    [
        ([1, IMAGE, IMAGE, 2], []),
        ([1, IMAGE, IMAGE, 2], [(1, 3)]),
        ([1, IMAGE, IMAGE], [(1, 3)]),
        ([1, 2], [(1, 1)]),
        ([IMAGE, 1, IMAGE], [(1, 1)]),
    ],
)
def test_image_tokens_that_do_not_fit_the_pictures_are_refused(
    token_ids: list[int], grids: list[tuple[int, int]]
) -> None:
    with pytest.raises(ValueError, match="image tokens"):
        prompt_positions(token_ids, grids, IMAGE)
