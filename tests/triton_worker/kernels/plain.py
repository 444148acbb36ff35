"""What the kernels are held against, and by how much they may differ."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
# The interpreter knows no bfloat16; on the GPU a float32 product would be one of tf32.
DTYPES = [torch.bfloat16, torch.float16] if GPU else [torch.float32, torch.float16]
# Each result is rounded two to four times, each time by half of the last bit at most. In bfloat16 that is 2e-3 of a
# value on average and 4e-3 at most: a gated product of few values, rounded three times, has been off by 6.7e-3.
_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float32: 2e-6}


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """New tensors hold NaN until they are written; for the tests of a file that imports it."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device=DEVICE) * scale).to(dtype)


def assert_close(result: Tensor, expected: Tensor) -> None:
    """By the norm of the difference: what one wrong value of a few thousand would show in."""
    assert result.shape == expected.shape
    assert torch.isfinite(result).all(), f"{int((~torch.isfinite(result)).sum())} values are not finite"
    difference = ((result.double() - expected.double()).norm() / expected.double().norm()).item()
    assert difference <= _TOLERANCE[result.dtype], f"off by {difference:.2e} of the norm, in {result.dtype}"


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x.double(), weight.shape, weight.double(), eps)


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    wide = torch.float64 if weight.numel() < 1e8 else torch.float32
    result = functional.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
    return result if residual is None else result + residual


def plain_gated(x: Tensor, weight: Tensor) -> Tensor:
    gate, up = plain_linear(x, weight).chunk(2, dim=-1)
    return functional.silu(gate) * up
