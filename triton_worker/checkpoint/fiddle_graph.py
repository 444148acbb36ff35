"""Writes the Fiddle JSON graph that NeMo 2.0 keeps in `context/io.json`, without Fiddle.

The layout is that of fiddle.experimental.serialization 0.0.1: every object of the graph once, children before parents,
and with each value the paths that lead to it from the root.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_FIDDLE = "fiddle._src.config"
_EMPTY_TUPLE: dict[str, Any] = {
    "type": {"type": "pyref", "module": "builtins", "name": "tuple"},
    "items": [],
    "metadata": None,
}


@dataclass(frozen=True)
class Symbol:
    """A class, function or dtype by the place it is imported from."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Config:
    """A class and the arguments it is to be called with: plain values, lists, mappings, symbols or further configs."""

    target: Symbol
    arguments: Mapping[str, Any] = field(default_factory=dict)


def fiddle_document(root: Config) -> dict[str, Any]:
    """The JSON document of the graph below `root`."""
    graph = _Graph(root)
    key = graph.add_config(root, "<root>")
    references = dict.fromkeys(graph.objects, 1)
    return {"root": {"type": "ref", "key": key}, "objects": graph.objects, "refcounts": references, "version": "0.0.1"}


class _Graph:
    def __init__(self, root: Config) -> None:
        self.objects: dict[str, Any] = {}
        self._counts: Counter[str] = Counter()
        # A symbol is one object wherever it stands, so each mention lists all of its places.
        self._symbol_paths: defaultdict[Symbol, list[str]] = defaultdict(list)
        for symbol, path in _symbols(root, "<root>"):
            self._symbol_paths[symbol].append(path)

    def add_config(self, config: Config, path: str) -> str:
        items = [
            [f"Attr(name='{name}')", self._value(value, f"{path}.{name}")] for name, value in config.arguments.items()
        ]
        metadata = self._add_metadata(config)
        kind = Symbol(_FIDDLE, "Config")
        return self._add(config.target.name, kind, items, metadata={"type": "ref", "key": metadata}, paths=[path])

    def _add_metadata(self, config: Config) -> str:
        names = [[f"Index(index={index})", name] for index, (name, _) in enumerate(config.arguments.items())]
        parts = [
            self._add("tuple", Symbol("builtins", "tuple"), names, metadata=None),
            self._add("dict", Symbol("builtins", "dict"), [], metadata=_EMPTY_TUPLE),
            self._add("dict", Symbol("builtins", "dict"), [], metadata=_EMPTY_TUPLE),
        ]
        items: list[Any] = [["Attr(name='fn_or_cls')", _pyref(config.target)]]
        for name, key in zip(("argument_names", "argument_tags", "argument_history"), parts, strict=True):
            items.append([f"Attr(name='{name}')", {"type": "ref", "key": key}])
        kind = Symbol(_FIDDLE, "BuildableTraverserMetadata")
        return self._add(kind.name, kind, items, metadata=_pyref(kind))

    def _value(self, value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, Config):
            return {"type": "ref", "key": self.add_config(value, path)}
        if isinstance(value, Symbol):
            return {**_pyref(value), "paths": self._symbol_paths[value]}
        if isinstance(value, Mapping):
            return {"type": "ref", "key": self._add_mapping(value, path)}
        if isinstance(value, (list, tuple)):
            return {"type": "ref", "key": self._add_sequence(value, path)}
        return {"type": "leaf", "value": value, "paths": [path]}

    def _add_mapping(self, mapping: Mapping[str, Any], path: str) -> str:
        items = [[f"Key(key='{key}')", self._value(value, f"{path}['{key}']")] for key, value in mapping.items()]
        metadata: Any = _EMPTY_TUPLE
        if items:
            keys = [[f"Index(index={index})", key] for index, key in enumerate(mapping)]
            names = self._add("tuple", Symbol("builtins", "tuple"), keys, metadata=None)
            metadata = {"type": "ref", "key": names}
        return self._add("dict", Symbol("builtins", "dict"), items, metadata=metadata, paths=[path])

    def _add_sequence(self, values: Sequence[Any], path: str) -> str:
        items = [
            [f"Index(index={index})", self._value(value, f"{path}[{index}]")] for index, value in enumerate(values)
        ]
        kind = Symbol("builtins", type(values).__name__)
        return self._add(kind.name, kind, items, metadata=None, paths=[path])

    def _add(self, name: str, kind: Symbol, items: list[Any], metadata: Any, paths: list[str] | None = None) -> str:
        name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()
        self._counts[name] += 1
        key = f"{name}_{self._counts[name]}"
        self.objects[key] = {"type": _pyref(kind), "items": items, "metadata": metadata}
        if paths is not None:
            self.objects[key]["paths"] = paths
        return key


def plain_document(value: Any) -> Any:
    """The same graph as nested plain data, as NeMo writes it to `context/model.yaml`."""
    if isinstance(value, Config):
        return {"_target_": str(value.target), **{name: plain_document(item) for name, item in value.arguments.items()}}
    if isinstance(value, Symbol):
        return {"_target_": str(value), "_call_": False}
    if isinstance(value, Mapping):
        return {key: plain_document(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_document(item) for item in value]
    return value


def _symbols(value: Any, path: str) -> Iterator[tuple[Symbol, str]]:
    """Every symbol among the arguments and its path."""
    if isinstance(value, Symbol):
        yield value, path
    elif isinstance(value, Config):
        for name, item in value.arguments.items():
            yield from _symbols(item, f"{path}.{name}")


def _pyref(symbol: Symbol) -> dict[str, Any]:
    return {"type": "pyref", "module": symbol.module, "name": symbol.name}
