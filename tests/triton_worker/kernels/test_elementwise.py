from __future__ import annotations

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton")

from tests.triton_worker.kernels.plain import DEVICE, DTYPES, assert_close, random
from tests.triton_worker.kernels.plain import poisoned as poisoned
from triton_worker.kernels.elementwise import rms_norm, rotate, silu_mul
from triton_worker.models.decoder.rope import apply_rotary, rotary_from_angles


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "size"), [(1, 8), (7, 100), (3, 1280), (5, 2048), (3, 3584), (2, 8192)])
def test_norms(tokens: int, size: int, dtype: torch.dtype) -> None:
    hidden, weight = random(tokens, size, dtype=dtype), random(size, dtype=dtype)
    assert_close(rms_norm(hidden, weight, 1e-6), functional.rms_norm(hidden, (size,), weight, 1e-6))


def test_the_norm_of_zeros_is_zero() -> None:
    zeros = torch.zeros(2, 64, dtype=DTYPES[0], device=DEVICE)
    assert torch.equal(rms_norm(zeros, torch.ones_like(zeros[0]), 1e-6), zeros)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "size"), [(1, 8), (5, 3420), (3, 1025), (2, 2048)])
def test_gated_activation(tokens: int, size: int, dtype: torch.dtype) -> None:
    gate_up = random(tokens, 2 * size, dtype=dtype, scale=3.0)
    gate_up[0, :4] = torch.tensor([-100.0, 100.0, 0.0, -20.0])
    gate, up = gate_up.chunk(2, dim=-1)
    assert_close(silu_mul(gate_up), functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide_tables", [True, False])
@pytest.mark.parametrize(("tokens", "heads", "size"), [(1, 1, 8), (5, 32, 80), (3, 18, 128), (2, 9, 64), (7, 5, 20)])
def test_rotation_of_heads_among_others(
    tokens: int, heads: int, size: int, wide_tables: bool, dtype: torch.dtype
) -> None:
    among = random(tokens, heads + 3, size, dtype=dtype)
    angles = torch.randn(tokens, size // 2, device=DEVICE) * 10
    rotary = rotary_from_angles(angles, torch.float32 if wide_tables else dtype)
    assert_close(rotate(among[:, :heads], rotary), apply_rotary(among[:, :heads], rotary))
