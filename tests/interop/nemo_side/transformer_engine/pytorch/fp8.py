"""FP8 is never on."""

import contextlib
from collections.abc import Iterator
from typing import Any


class FP8GlobalStateManager:
    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return False

    @classmethod
    def with_fp8_parameters(cls) -> bool:
        return False

    @classmethod
    def get_fp8_recipe(cls) -> None:
        return None

    @classmethod
    def is_fp8_calibration(cls) -> bool:
        return False

    @classmethod
    def reset(cls) -> None: ...

    @classmethod
    def reduce_and_update_fp8_tensors(cls, *arguments: Any, **more: Any) -> None: ...


@contextlib.contextmanager
def fp8_autocast(*arguments: Any, **more: Any) -> Iterator[None]:
    yield


@contextlib.contextmanager
def fp8_model_init(*arguments: Any, **more: Any) -> Iterator[None]:
    yield
