"""The matrix products of decoding: our kernel beside cuBLAS and beside the time of reading the weights once.

    python -m benchmarks.kernel_linear [--model 3b|7b]

Needs a GPU. Everything runs in CUDA graphs, over so many copies of a weight that none is still in the L2 cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.shapes import SHAPES
from triton_worker.kernels import elementwise
from triton_worker.kernels.linear import MOST_ROWS, Tiles, default_tiles, small_batch_gated_linear, small_batch_linear
from triton_worker.models.decoder.rope import Rotary

ROWS = range(1, MOST_ROWS + 1)
TILES = (Tiles(2, 1024, 4), Tiles(4, 1024, 4), Tiles(4, 2048, 8))
_CACHE_BYTES = 60e6
_DTYPE, _DEVICE = torch.bfloat16, "cuda"


class Product(NamedTuple):
    """A product of the decoder's layer with what is fused to it; `rows` of the weight, gate and up together."""

    name: str
    rows: int
    columns: int
    bias: bool = False
    residual: bool = False
    gated: bool = False

    @property
    def bytes(self) -> int:
        return 2 * self.rows * self.columns


def products(model: str) -> list[Product]:
    text = SHAPES[model].text
    heads = text.num_heads * text.head_dim
    return [
        Product("qkv", heads + 2 * text.num_kv_heads * text.head_dim, text.hidden_size, bias=True),
        Product("o", text.hidden_size, heads, residual=True),
        Product("gate_up", 2 * text.intermediate_size, text.hidden_size, gated=True),
        Product("down", text.hidden_size, text.intermediate_size, residual=True),
        Product("output", text.vocab_size, text.hidden_size),
    ]


class Operands:
    """One product's tensors for a number of rows."""

    def __init__(self, product: Product, rows: int, weight: Tensor) -> None:
        def values(*shape: int) -> Tensor:
            return torch.randn(*shape, device=_DEVICE, dtype=_DTYPE)

        self.product = product
        self.x = values(rows, product.columns)
        self.weight = weight
        self.bias = values(product.rows) if product.bias else None
        self.residual = values(rows, product.rows) if product.residual else None

    def ours(self, tiles: Tiles) -> Tensor:
        if self.product.gated:
            return small_batch_gated_linear(self.x, self.weight, tiles=tiles)
        return small_batch_linear(self.x, self.weight, self.bias, residual=self.residual, tiles=tiles)

    def cublas(self) -> Tensor:
        """The product alone."""
        return linear(self.x, self.weight, self.bias)


def _random_weight(product: Product) -> Tensor:
    weight = torch.empty(product.rows, product.columns, device=_DEVICE, dtype=_DTYPE)
    return weight.normal_(std=product.columns**-0.5)


def microseconds(calls: list[Callable[[], object]], replays: int = 9) -> float:
    """Median time of a graph of these calls."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return _median(graph.replay, replays)


def _median(action: Callable[[], object], times: int) -> float:
    """Microseconds on the device, after two to warm up."""
    took = []
    for _ in range(times + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        action()
        end.record()
        end.synchronize()
        took.append(1000 * start.elapsed_time(end))
    return statistics.median(took[2:])


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a device copy of 1 GiB."""
    source = torch.zeros(2**30, dtype=torch.uint8, device=_DEVICE)
    target = torch.zeros_like(source)
    for _ in range(20):  # until the clocks are up
        target.copy_(source)
    return 2 * source.numel() / _median(lambda: target.copy_(source), 30) * 1e6


def compare_products(model: str, bandwidth: float) -> None:
    print(
        f"\n{model}: µs of a product, ours with gate and residual, cuBLAS the bare one; in brackets, of the bandwidth"
    )
    columns = "".join(f"{tuple(tiles)!s:>20}" for tiles in TILES)
    print(f"{'product':<9}{'rows':>4}{'floor':>8}{'cuBLAS':>15}{columns}  unasked (weight rows, columns, warps)")
    for product in products(model):
        copies = 1 + int(3 * _CACHE_BYTES / product.bytes)
        weights = [_random_weight(product) for _ in range(copies)]
        floor = product.bytes / bandwidth * 1e6
        for rows in ROWS:
            operands = [Operands(product, rows, weight) for weight in weights]
            rounds = max(1, 10 // copies)
            calls = [[each.cublas for each in operands]]
            calls += [[partial(each.ours, tiles) for each in operands] for tiles in TILES]
            took = [microseconds(each * rounds) / copies / rounds for each in calls]
            shares = "".join(f"{each:>{13 if n else 8}.2f} ({floor / each:>4.0%})" for n, each in enumerate(took))
            unasked = default_tiles(product.columns, gated=product.gated)
            print(f"{product.name:<9}{rows:>4}{floor:>8.2f} {shares}  {tuple(unasked)}", flush=True)


class Layer:
    """The products of a layer for a number of rows, without attention: its output is another input."""

    def __init__(self, model: str, weights: list[Tensor], rows: int) -> None:
        self.qkv, self.o, self.gate_up, self.down = (
            Operands(product, rows, weight) for product, weight in zip(products(model)[:4], weights, strict=True)
        )
        self.norms = [(torch.ones_like(self.qkv.x[0]), 1e-6) for _ in range(2)]

    def ours(self, hidden: Tensor, overlap: bool | None = None) -> Tensor:
        small_batch_linear(hidden, self.qkv.weight, self.qkv.bias, norm=self.norms[0], overlap=overlap)
        hidden = small_batch_linear(self.o.x, self.o.weight, residual=hidden, overlap=overlap)
        product = small_batch_gated_linear(hidden, self.gate_up.weight, norm=self.norms[1], overlap=overlap)
        return small_batch_linear(product, self.down.weight, residual=hidden, overlap=overlap)

    def cublas(self, hidden: Tensor) -> Tensor:
        """The products by cuBLAS, the rest by our kernels."""
        linear(elementwise.rms_norm(hidden, *self.norms[0]), self.qkv.weight, self.qkv.bias)
        hidden = torch.addmm(hidden, self.o.x, self.o.weight.t())
        gate_up = linear(elementwise.rms_norm(hidden, *self.norms[1]), self.gate_up.weight)
        return torch.addmm(hidden, elementwise.silu_mul(gate_up), self.down.weight.t())


STEPS: dict[str, Callable[[Layer, Tensor], Tensor]] = {
    "ours": Layer.ours,
    "ours, products not overlapped": partial(Layer.ours, overlap=False),
    "cuBLAS, the rest ours": Layer.cublas,
}
_AT_ALL_ROWS = ("ours", "cuBLAS, the rest ours")


def compare_layers(model: str, bandwidth: float) -> None:
    count = SHAPES[model].text.num_layers
    parts = products(model)[:4]
    weights = [[_random_weight(product) for product in parts] for _ in range(count)]
    floor = count * sum(product.bytes for product in parts) / bandwidth * 1e3
    print(f"\n{model}: ms of the products of {count} layers in a graph, without attention; floor {floor:.3f}")
    print(f"{'rows':<40}" + "".join(f"{rows:>8}" for rows in ROWS) + "   off by, of the norm")
    for name, step in STEPS.items():
        took = []
        for rows in ROWS if name in _AT_ALL_ROWS else ROWS[:1]:
            torch.manual_seed(0)
            layers = [Layer(model, each, rows) for each in weights]
            start = torch.randn(rows, parts[0].columns, device=_DEVICE, dtype=_DTYPE)
            took.append(microseconds([partial(_chain, step, layers, start)], replays=25) / 1000)
            off = _difference(_chain(step, layers[:1], start), Layer.cublas(layers[0], start))
        print(
            f"{name:<40}" + "".join(f"{each:>8.3f}" for each in took).ljust(8 * len(ROWS)) + f"   {off:.1e}", flush=True
        )


def _chain(step: Callable[[Layer, Tensor], Tensor], layers: list[Layer], hidden: Tensor) -> Tensor:
    for layer in layers:
        hidden = step(layer, hidden)
    return hidden


def _difference(result: Tensor, expected: Tensor) -> float:
    return ((result.float() - expected.float()).norm() / expected.float().norm()).item()


def compare_elementwise(bandwidth: float) -> None:
    """At the sizes of a prompt of 4,008 tokens and of a picture of 15,392 patches, beside a copy's time."""

    def values(*shape: int, dtype: torch.dtype = _DTYPE) -> Tensor:
        return torch.randn(shape, device=_DEVICE, dtype=dtype)

    hidden, scale, gate_up, heads = values(4008, 2048), values(2048), values(4008, 22016), values(15392, 48, 80)[:, :32]
    tables = Rotary(*(values(15392, 1, 80, dtype=torch.float32) for _ in range(2)))
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "rms_norm": (lambda: elementwise.rms_norm(hidden, scale, 1e-6), 4 * hidden.numel()),
        "silu_mul": (lambda: elementwise.silu_mul(gate_up), 3 * gate_up.numel()),
        "rotate": (lambda: elementwise.rotate(heads, tables), 4 * heads.numel() + 8 * tables.cos.numel()),
    }
    print("\nµs in prefill")
    for name, (call, moved) in calls.items():
        print(f"{name:<10}{microseconds([call] * 10) / 10:>8.1f}   floor {moved / bandwidth * 1e6:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["3b", "7b"], default="3b")
    model = parser.parse_args().model
    began = time.monotonic()
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: {bandwidth / 1e12:.2f} TB/s in a copy")
    compare_layers(model, bandwidth)
    compare_elementwise(bandwidth)
    compare_products(model, bandwidth)
    print(f"\nall in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
