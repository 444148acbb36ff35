from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.triton_worker.kernels.plain import (
    DEVICE,
    DTYPES,
    GPU,
    assert_close,
    plain_gated,
    plain_linear,
    plain_norm,
    random,
)
from tests.triton_worker.kernels.plain import poisoned as poisoned
from triton_worker.kernels import elementwise, linear
from triton_worker.kernels.elementwise import silu_mul
from triton_worker.kernels.linear import MOST_ROWS, Tiles, default_tiles, small_batch_gated_linear, small_batch_linear

needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
SMALL = Tiles(rows=4, columns=64, warps=2)
ROWS = range(1, MOST_ROWS + 1)
# Of the language models of Qwen2.5-VL 3B and 7B: rows and columns of the weight.
QKV, ATTENDED, DOWN, OUTPUT, GATE_UP = "qkv", "attention's output", "down", "output", "gate and up"
SHAPES = {
    "3b": {QKV: (2560, 2048), ATTENDED: (2048, 2048), DOWN: (2048, 11008), OUTPUT: (151936, 2048),
           GATE_UP: (22016, 2048)},
    "7b": {QKV: (4608, 3584), ATTENDED: (3584, 3584), DOWN: (3584, 18944), GATE_UP: (37888, 3584)},
}  # fmt: skip


def check(
    rows: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    *,
    bias: bool = False,
    residual: bool = False,
    gate: bool = False,
    norm: bool = False,
    tiles: Tiles | None = None,
    overlap: bool | None = None,
) -> None:
    size, columns = shape
    x = random(rows, columns, dtype=dtype)
    weight = random(size, columns, dtype=dtype, scale=columns**-0.5)
    biases = random(size, dtype=dtype) if bias else None
    residuals = random(rows, size, dtype=dtype) if residual else None
    norms = (random(columns, dtype=dtype), 1e-6) if norm else None
    settle()
    normed = x if norms is None else plain_norm(x, *norms)
    if gate:
        result = small_batch_gated_linear(x, weight, norm=norms, tiles=tiles, overlap=overlap)
        assert_close(result, plain_gated(normed, weight))
    else:
        result = small_batch_linear(x, weight, biases, norm=norms, residual=residuals, tiles=tiles, overlap=overlap)
        assert_close(result, plain_linear(normed, weight, biases, residuals))


def settle() -> None:
    """Weights are read ahead, so they must have been written before."""
    if GPU:
        torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("bias", "residual", "norm"), list(itertools.product([False, True], repeat=3)))
def test_every_combination_of_parts(bias: bool, residual: bool, norm: bool, rows: int, dtype: torch.dtype) -> None:
    check(rows, (18, 96), dtype, bias=bias, residual=residual, norm=norm, tiles=SMALL)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_gated(rows: int, dtype: torch.dtype) -> None:
    check(rows, (38, 96), dtype, gate=True, tiles=SMALL)
    check(rows, (48, 192), dtype, gate=True, norm=True)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("columns", [8, 40, 64, 72, 1032])
def test_odd_sizes(columns: int, rows: int) -> None:
    check(rows, (7, columns), DTYPES[0], residual=True)
    check(rows, (14, columns), DTYPES[0], gate=True)


def test_rows_of_several_steps() -> None:
    check(2, (5, 200), DTYPES[0], residual=True, tiles=SMALL)
    check(1, (3, 4104), DTYPES[0], residual=True)


def test_a_row_does_not_depend_on_what_lies_behind_the_batch() -> None:
    x = random(2, 96, dtype=DTYPES[0])
    x[1] = float("nan")
    weight = random(32, 96, dtype=DTYPES[0])
    settle()
    assert torch.isfinite(small_batch_linear(x[:1], weight)).all()


@pytest.mark.parametrize(
    ("rows", "weight", "bias", "residual"),
    [(0, (8, 16), 8, (0, 8)), (3, (8, 16), 8, (3, 8)), (2, (8, 24), 8, (2, 8)), (2, (8, 16), 9, (2, 8)),
     (2, (8, 16), 8, (1, 8))],
)  # fmt: skip
def test_refuses_what_does_not_fit(rows: int, weight: tuple[int, int], bias: int, residual: tuple[int, int]) -> None:
    tensors = [torch.zeros(shape, device=DEVICE) for shape in ((rows, 16), weight, (bias,), residual)]
    with pytest.raises(ValueError, match=r"expected a contiguous|the kernel takes"):
        small_batch_linear(*tensors[:3], residual=tensors[3])


def test_refuses_strides_and_other_dtypes() -> None:
    x, weight = torch.zeros(2, 16, device=DEVICE), torch.zeros(8, 16, device=DEVICE)
    with pytest.raises(ValueError, match="strides"):
        small_batch_linear(torch.zeros(16, 2, device=DEVICE).t(), weight)
    with pytest.raises(ValueError, match="float16"):
        small_batch_linear(x, weight.half())


@needs_gpu
@pytest.mark.parametrize("model", ["3b", "7b"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("part", [QKV, ATTENDED, DOWN, OUTPUT, GATE_UP])
def test_published_sizes(model: str, rows: int, part: str) -> None:
    if part not in SHAPES[model]:
        pytest.skip("like the other model's")
    check(
        rows, SHAPES[model][part], torch.bfloat16, bias=part == QKV, residual=part in (ATTENDED, DOWN),
        gate=part == GATE_UP, norm=part in (QKV, GATE_UP),
    )  # fmt: skip


@needs_gpu
@pytest.mark.parametrize("rows", ROWS)
def test_without_overlap(rows: int) -> None:
    check(rows, (2560, 2048), torch.bfloat16, bias=True, overlap=False)


@needs_gpu
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("fused", [True, False])
def test_overlapped_layers_in_a_graph_give_what_separate_ones_give(
    rows: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that run into each other must not see half-written results: bit for bit, over many replays."""
    layers = [_Layer(2048, 2560, 1024) for _ in range(3)] * 4
    x = random(rows, 2048, dtype=torch.bfloat16)
    torch.use_deterministic_algorithms(False)  # its fills would stand between the kernels

    def forward() -> Tensor:
        hidden = x
        for layer in layers:
            hidden = layer(hidden, fused)
        return hidden

    settle()
    forward()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        overlapped = forward()
    for module in (linear, elementwise):
        monkeypatch.setattr(module, "can_overlap", lambda device: False)
    for attempt in range(10):
        x.copy_(random(rows, 2048, dtype=torch.bfloat16))
        expected = forward()
        settle()
        graph.replay()
        settle()
        wrong = int((overlapped != expected).sum())
        assert wrong == 0, f"replay {attempt}: {wrong} of {expected.numel()} values differ"


class _Layer:
    """The products of a decoder's layer, without attention between qkv and its output."""

    def __init__(self, hidden: int, qkv: int, inner: int) -> None:
        def weight(*shape: int) -> Tensor:
            return random(*shape, dtype=torch.bfloat16, scale=shape[-1] ** -0.5)

        self.qkv, self.bias, self.output = weight(qkv, hidden), weight(qkv), weight(hidden, qkv)
        self.gate_up, self.down = weight(2 * inner, hidden), weight(hidden, inner)
        self.norms = [(weight(hidden) + 1, 1e-6) for _ in range(2)]

    def __call__(self, hidden: Tensor, fused: bool) -> Tensor:
        attended = small_batch_linear(hidden, self.qkv, self.bias, norm=self.norms[0])
        hidden = small_batch_linear(attended, self.output, residual=hidden)
        if fused:
            product = small_batch_gated_linear(hidden, self.gate_up, norm=self.norms[1])
        else:
            product = silu_mul(small_batch_linear(elementwise.rms_norm(hidden, *self.norms[1]), self.gate_up))
        return small_batch_linear(product, self.down, residual=hidden)


def test_default_tiles_are_powers_of_two() -> None:
    for columns, gate in itertools.product((8, 40, 2048, 3584, 18944), (True, False)):
        for size in default_tiles(columns, gated=gate):
            assert size & (size - 1) == 0
