import contextlib
from collections.abc import Callable
from typing import Any


class CudaRNGStatesTracker:
    def __init__(self) -> None:
        self.states_: dict[str, Any] = {}

    def reset(self) -> None:
        self.states_ = {}

    def get_states(self) -> dict[str, Any]:
        return dict(self.states_)

    def set_states(self, states: dict[str, Any]) -> None:
        self.states_ = states

    def add(self, name: str, seed: int) -> None:
        self.states_[name] = seed


def is_fp8_activation_recompute_enabled() -> bool:
    return False


def activation_recompute_forward(*arguments: Any, **more: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def checkpoint(function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    return function(*arguments)
