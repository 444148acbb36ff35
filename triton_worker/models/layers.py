"""Layers shared by the model families. Parameters start uninitialised: a checkpoint fills every one of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_worker.models import operations
from triton_worker.parallel import Ranks

_ALIGNED_VALUES = 64
"""128 bytes of a 16-bit type."""


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """A parameter without gradient whose values are yet to be loaded."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


class RMSNorm(nn.Module):
    """Divides each vector by its root mean square, then scales it by a learnt weight."""

    def __init__(self, size: int, eps: float, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = empty_parameter(size, dtype=dtype, device=device)
        self._eps = eps

    @property
    def norm(self) -> operations.Norm:
        """For a product that takes its inputs through it."""
        return operations.Norm(self.weight, self._eps)

    def forward(self, inputs: Tensor) -> Tensor:
        return operations.rms_norm(inputs, self.norm)


class Linear(nn.Module):
    """[..., in_features] -> [..., out_features]; inputs may pass a norm first, and a residual, used up, be added."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.weight = empty_parameter(out_features, in_features, dtype=dtype, device=device)
        self.bias = empty_parameter(out_features, dtype=dtype, device=device) if bias else None

    def forward(self, inputs: Tensor, norm: RMSNorm | None = None, residual: Tensor | None = None) -> Tensor:
        through = None if norm is None else norm.norm
        return operations.linear(inputs, self.weight, self.bias, norm=through, residual=residual)


class RowParallelLinear(Linear):
    """[..., in_features of this rank] -> [..., out_features], the sum over the ranks of the stage.

    A rank holds some columns of the whole weight, those of the inputs that it has itself. Its counterpart, with some of
    the rows, exchanges nothing: it is a plain `Linear`.
    """

    def __init__(
        self, in_features: int, out_features: int, ranks: Ranks, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, dtype=dtype, device=device)
        self._ranks = ranks

    def forward(self, inputs: Tensor, *, residual: Tensor | None = None) -> Tensor:  # type: ignore[override]
        # No norm: it takes whole vectors, of which a rank has a part.
        if self._ranks.tensor_size == 1:
            return super().forward(inputs, residual=residual)
        product = self._ranks.sum(operations.linear(inputs, self.weight))
        if self.bias is not None:
            product = product + self.bias
        return product if residual is None else residual.add_(product)


class ParallelVocabulary(nn.Module):
    """Token embedding or output matrix of which each rank of the stage holds some rows, in order."""

    def __init__(
        self, vocab_size: int, rows: range, hidden_size: int, ranks: Ranks, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`rows` are this rank's; all ranks but the last ones have as many as the first."""
        super().__init__()
        self.weight = empty_parameter(len(rows), hidden_size, dtype=dtype, device=device)
        self._vocab_size, self._rows, self._ranks = vocab_size, rows, ranks

    def embed(self, token_ids: Tensor) -> Tensor:
        """[tokens] int64 -> [tokens, hidden_size]."""
        if self._ranks.tensor_size == 1:
            return functional.embedding(token_ids, self.weight)
        local = token_ids - self._rows.start
        elsewhere = (local < 0) | (local >= len(self._rows))
        embedded = functional.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return self._ranks.sum(embedded.masked_fill(elsewhere[:, None], 0))

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden_size] -> [n, vocab_size], on every rank of the stage."""
        logits = operations.linear(hidden, self.weight)
        if self._ranks.tensor_size == 1:
            return logits
        rows_of_first = -(-self._vocab_size // self._ranks.tensor_size)
        padded = functional.pad(logits, (0, rows_of_first - len(self._rows)))
        return self._ranks.gather(padded)[:, : self._vocab_size]


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), with gate and up as the two halves of one product's rows.

    `intermediate_size` is this rank's part of it.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        ranks: Ranks | None = None,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size, bias=bias, dtype=dtype, device=device)
        self.down_proj = RowParallelLinear(
            intermediate_size, hidden_size, ranks or Ranks(), bias=bias, dtype=dtype, device=device
        )

    def forward(self, hidden: Tensor, norm: RMSNorm | None = None, residual: Tensor | None = None) -> Tensor:
        """[..., hidden_size] -> the same; through `norm` first, and added to `residual`, which is used up."""
        up = self.gate_up_proj
        through = None if norm is None else norm.norm
        product: Tensor = self.down_proj(
            operations.gated_linear(hidden, up.weight, up.bias, norm=through), residual=residual
        )
        return product

    def align(self) -> None:
        """Widen the middle with zeros, so that its rows begin where matrix units read fastest; no result changes."""
        size = self.down_proj.weight.shape[1]
        more = -size % _ALIGNED_VALUES
        if not more:
            return
        up = self.gate_up_proj
        for name, dimensions in (("weight", (0, 0, 0, more)), ("bias", (0, more))):
            parameter = getattr(up, name)
            if parameter is not None:
                halves = (functional.pad(half, dimensions) for half in parameter.data.split(size))
                setattr(up, name, nn.Parameter(torch.cat(list(halves)), requires_grad=False))
        widened = functional.pad(self.down_proj.weight.data, (0, more))
        self.down_proj.weight = nn.Parameter(widened, requires_grad=False)


def align_products(model: nn.Module) -> None:
    """Widen what a GPU's matrix units would read slowly, once the model is filled."""
    for module in model.modules():
        if isinstance(module, GatedMLP) and module.down_proj.weight.is_cuda:
            module.align()


class LayerNorm(nn.Module):
    """Shifts and scales each vector to mean 0 and variance 1, then by a learnt weight and bias."""

    def __init__(self, size: int, eps: float, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = empty_parameter(size, dtype=dtype, device=device)
        self.bias = empty_parameter(size, dtype=dtype, device=device)
        self._shape, self._eps = (size,), eps

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.layer_norm(inputs, self._shape, self.weight, self.bias, self._eps)


class MLP(nn.Module):
    """down(activation(up(x))), both with a bias."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: Callable[[Tensor], Tensor],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self._activation = activation
        self.up_proj = Linear(hidden_size, intermediate_size, bias=True, dtype=dtype, device=device)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=True, dtype=dtype, device=device)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.down_proj(self._activation(self.up_proj(hidden)))
        return result


def quick_gelu(inputs: Tensor) -> Tensor:
    """OpenAI CLIP's approximation of the GELU (arXiv:1606.08415, section 2)."""
    return inputs * torch.sigmoid(1.702 * inputs)
