"""Typed reading of a configuration that came from a file, with errors that name the file and the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton_worker.checkpoint.errors import CheckpointError


class Fields:
    """One section of a configuration file. A field that is missing or null takes its default, or is an error."""

    def __init__(self, content: Mapping[str, Any], file: Path, section: str = "") -> None:
        self._content = content
        self._file = file
        self._section = section

    def has(self, name: str) -> bool:
        return self._content.get(name) is not None

    def section(self, name: str, defaults: Mapping[str, Any] | None = None) -> Fields:
        """The section called `name` over `defaults`; an absent one is only the defaults."""
        value = self._content.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(name, "a group of fields was expected")
        passed = {key: item for key, item in (value or {}).items() if item is not None}
        return Fields({**(defaults or {}), **passed}, self._file, f"{self._section}{name}.")

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.error(name, "a name was expected")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """A number of at least 1."""
        value = self._value(name, default)
        if type(value) is not int or not 1 <= value < 2**31:
            raise self.error(name, "a positive whole number was expected")
        return value

    def signed_integer(self, name: str, default: int) -> int:
        """Any whole number."""
        value = self._value(name, default)
        if type(value) is not int:
            raise self.error(name, "a whole number was expected")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._value(name, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.error(name, "a positive number was expected")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false was expected")
        return value

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of numbers of at least 0."""
        value = self._value(name, default)
        if not isinstance(value, (list, tuple)) or any(type(item) is not int or item < 0 for item in value):
            raise self.error(name, "a list of whole numbers was expected")
        return tuple(value)

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """A list of finite numbers above 0, as many as in `default`."""
        value = self._value(name, default)
        if (
            not isinstance(value, (list, tuple))
            or len(value) != len(default)
            or any(type(item) not in (int, float) or not 0 < item < math.inf for item in value)
        ):
            raise self.error(name, f"a list of {len(default)} positive numbers was expected")
        return tuple(float(item) for item in value)

    @property
    def class_name(self) -> str:
        """Of a section that NeMo wrote, the class that it describes, without its module."""
        return self.text("_target_", "").rpartition(".")[2]

    def only(self, name: str, value: str) -> None:
        """Raise where the field is there and has another value."""
        if self.text(name, value) != value:
            raise self.error(name, f"only {value!r} is supported")

    def plain(self, name: str) -> Any:
        """Whatever is there."""
        return self._content.get(name)

    def error(self, name: str, expected: str) -> CheckpointError:
        """The error that says what `name` holds and what was expected of it."""
        value = self._content.get(name)
        found = "is missing" if value is None else f"is {repr(value)[:100]}"
        return CheckpointError(f"{self._file}: {self._section}{name} {found}; {expected}.")

    def _value(self, name: str, default: Any) -> Any:
        value = self._content.get(name)
        return default if value is None else value
