"""What users run against a deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clients.multimodal import NemoQueryMultimodalPytorch

__all__ = ["NemoQueryMultimodalPytorch"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported when asked for: the REST client needs no Triton client
        from clients import multimodal

        return getattr(multimodal, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
