from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, rms_norm


class Stateful(nn.Module):
    """With the ``_extra_state`` of Transformer Engine 2.4 and later where FP8 is off."""

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None: ...

    def set_tensor_parallel_group(self, group: Any) -> None: ...


class _Linear(Stateful):
    """Of one rank alone."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        init_method: Callable[[Tensor], Any] | None = None,
        **more: Any,
    ) -> None:
        super().__init__()
        dtype = params_dtype or torch.get_default_dtype()
        self.in_features, self.out_features = in_features, out_features
        self.use_bias, self.return_bias = bias, return_bias
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype, device=device))
        if device != "meta" and init_method is not None:
            with torch.no_grad():
                init_method(self.weight)
        zeros = torch.zeros(out_features if bias else 0, dtype=dtype, device=device)
        self.bias = nn.Parameter(zeros) if bias else zeros

    def _multiply(self, values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.return_bias:
            return linear(values, self.weight), self.bias
        return linear(values, self.weight, self.bias if self.use_bias else None)


class Linear(_Linear):
    def forward(self, values: Tensor, **more: Any) -> Tensor | tuple[Tensor, Tensor]:
        return self._multiply(values)


class LayerNormLinear(_Linear):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        eps: float = 1e-5,
        normalization: str = "LayerNorm",
        params_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        **more: Any,
    ) -> None:
        super().__init__(in_features, out_features, params_dtype=params_dtype, device=device, **more)
        self.eps, self.normalization = eps, normalization
        placed = {"dtype": params_dtype or torch.get_default_dtype(), "device": device}
        self.layer_norm_weight = nn.Parameter(torch.ones(in_features, **placed))
        with_bias = normalization == "LayerNorm"
        self.layer_norm_bias = nn.Parameter(torch.zeros(in_features, **placed)) if with_bias else None

    def forward(self, values: Tensor, **more: Any) -> Tensor | tuple[Tensor, Tensor]:
        return self._multiply(_normalise(values, self.layer_norm_weight, self.layer_norm_bias, self.eps))


class _Norm(Stateful):
    with_bias: bool

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        params_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        **more: Any,
    ) -> None:
        super().__init__()
        self.eps = eps
        placed = {"dtype": params_dtype or torch.get_default_dtype(), "device": device}
        self.weight = nn.Parameter(torch.ones(hidden_size, **placed))
        self.bias = nn.Parameter(torch.zeros(hidden_size, **placed)) if self.with_bias else None

    def forward(self, values: Tensor) -> Tensor:
        return _normalise(values, self.weight, self.bias, self.eps)


class LayerNorm(_Norm):
    with_bias = True


class RMSNorm(_Norm):
    with_bias = False


class GroupedLinear(Stateful):
    """Of mixtures of experts, which are not made here."""


def _normalise(values: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm where there is a bias, else RMSNorm."""
    if bias is None:
        return rms_norm(values, values.shape[-1:], weight, eps)
    return layer_norm(values, values.shape[-1:], weight, bias, eps)
