import enum
from typing import Any


class Format(enum.Enum):
    E4M3 = "E4M3"
    HYBRID = "HYBRID"


class Recipe: ...


class DelayedScaling(Recipe):
    def __init__(self, *arguments: Any, **more: Any) -> None: ...


class Float8CurrentScaling(Recipe): ...


class MXFP8BlockScaling(Recipe): ...


class Float8BlockScaling(Recipe): ...
