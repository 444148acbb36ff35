from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from triton_worker.models.qwen2_5_vl.vision import window_layout
from triton_worker.models.varlen_attention import Segments, varlen_attention


@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [3, 3, 1, 7, 7, 3], [1, 1, 2]], ids=str)
def test_varlen_attention_is_attention_within_each_segment(lengths: list[int]) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, sum(lengths), 2, 8)
    segment = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    mask = segment.unsqueeze(0) == segment.unsqueeze(1)
    segments = Segments.of(lengths, query.device)
    heads_first = (x.transpose(0, 1) for x in (query, key, value))
    expected = scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(0, 1)
    torch.testing.assert_close(varlen_attention(query, key, value, segments), expected)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (9, 7), (3, 2), (1, 13), (8, 4), (5, 4)])
def test_windows_hold_each_unit_once_and_only_neighbours(rows: int, columns: int) -> None:
    layout = window_layout(rows, columns, side=4, patches_per_unit=4)
    assert sorted(layout.order.tolist()) == list(range(rows * columns))
    assert sum(layout.window_lengths) == 4 * rows * columns
    for units in torch.split(layout.order, [length // 4 for length in layout.window_lengths]):
        row, column = units // columns, units % columns
        assert len({(r // 4, c // 4) for r, c in zip(row.tolist(), column.tolist(), strict=True)}) == 1
    assert len(layout.window_lengths) == -(-rows // 4) * -(-columns // 4)


def test_windows_of_equal_length_stand_together() -> None:
    lengths = window_layout(10, 11, side=4, patches_per_unit=1).window_lengths
    assert lengths == (16, 16, 16, 16, 12, 12, 8, 8, 6)
