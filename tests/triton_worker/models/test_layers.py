from __future__ import annotations

import pytest
import torch

from triton_worker.models.layers import GatedMLP, RMSNorm


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [20, 64, 100])
def test_a_network_that_was_widened_says_the_same(size: int, bias: bool) -> None:
    torch.manual_seed(0)
    mlp = GatedMLP(16, size, bias=bias, dtype=torch.float64, device=torch.device("cpu"))
    for parameter in mlp.parameters():
        parameter.normal_()
    hidden = torch.randn(5, 16, dtype=torch.float64)
    before = mlp(hidden, residual=hidden.clone())
    mlp.align()
    assert mlp.down_proj.weight.shape[1] % 64 == 0
    assert mlp.gate_up_proj.weight.shape[0] == 2 * mlp.down_proj.weight.shape[1]
    torch.testing.assert_close(mlp(hidden, residual=hidden.clone()), before)


def test_a_norm_in_front_and_a_sum_behind_are_as_if_done_apart() -> None:
    torch.manual_seed(0)
    mlp = GatedMLP(16, 20, bias=False, dtype=torch.float32, device=torch.device("cpu"))
    norm = RMSNorm(16, 1e-6, dtype=torch.float32, device=torch.device("cpu"))
    for parameter in (*mlp.parameters(), *norm.parameters()):
        parameter.normal_()
    hidden = torch.randn(5, 16)
    torch.testing.assert_close(mlp(hidden, norm=norm, residual=hidden.clone()), mlp(norm(hidden)) + hidden)
