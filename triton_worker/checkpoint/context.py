"""What a NeMo 2.0 checkpoint says about its model (`context/`), as plain nested data.

io.json is a Fiddle graph: `objects` by key, whose items are plain values or nodes of type leaf, ref or pyref. It holds
only the arguments that were passed; model.yaml, where there is one, holds the defaults too. Classes and functions stay
strings (`_target_`): nothing is imported, and nothing is built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from triton_worker.checkpoint.checkpoint import read_json_object
from triton_worker.checkpoint.errors import CheckpointError

# The names of items in a Fiddle graph, for example: Attr(name='config'), Key(key='lr'), Index(index=0).
_ITEM_NAME = re.compile(r"(?:Attr\(name|Key\(key|Index\(index)='?(.*?)'?\)", re.DOTALL)


def read_model_context(directory: Path) -> dict[str, Any]:
    """The `model` node of context/io.json in `directory`, with the defaults that context/model.yaml adds.

    A constructed object is a dict of its arguments and `_target_`, its class by name. Raises CheckpointError.
    """
    path = directory / "io.json"
    model = read_io_json(path).get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path} describes no model.")
    defaults = directory / "model.yaml"
    return _filled_up(model, _read_yaml(defaults)) if defaults.exists() else model


def read_io_json(path: Path) -> dict[str, Any]:
    """The object at the root of a Fiddle graph in `path`. Raises CheckpointError."""
    document = read_json_object(path)
    try:
        root = _Graph(document["objects"]).resolve(document["root"]["key"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} is not a description that NeMo 2.0 writes.") from None
    if not isinstance(root, dict):
        raise CheckpointError(f"{path} describes no object.")
    return root


class _Graph:
    def __init__(self, objects: dict[str, Any]) -> None:
        self._objects = objects
        self._resolved: dict[str, Any] = {}  # Each object once: a graph may refer to one many times.

    def resolve(self, key: str) -> Any:
        if key not in self._resolved:
            self._resolved[key] = self._build(self._objects[key])
        return self._resolved[key]

    def _build(self, node: dict[str, Any]) -> Any:
        kind = node["type"]["name"]
        if kind in ("list", "tuple"):
            return [self._value(value) for _, value in node["items"]]
        items = {_item_name(name): self._value(value) for name, value in node["items"]}
        if kind in ("Config", "Partial"):
            metadata = self._objects[node["metadata"]["key"]]["items"]
            target = next(value for name, value in metadata if _item_name(name) == "fn_or_cls")
            return {"_target_": self._value(target), **items}
        return items if kind == "dict" else {"_target_": kind}

    def _value(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if node["type"] == "leaf":
            return node["value"]
        if node["type"] == "pyref":
            return f"{node['module']}.{node['name']}"
        if node["type"] == "ref":
            return self.resolve(node["key"])
        raise ValueError(node["type"])


def _item_name(name: str) -> str:
    match = _ITEM_NAME.fullmatch(name)
    return match.group(1) if match else name


def _filled_up(passed: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`passed` with what only `defaults` has, at every depth."""
    filled = {**defaults, **passed}
    for key in passed.keys() & defaults.keys():
        if isinstance(passed[key], Mapping) and isinstance(defaults[key], Mapping):
            filled[key] = _filled_up(passed[key], defaults[key])
    return filled


class _PlainLoader(yaml.SafeLoader):
    """Reads a tagged node (`!!python/object:...`) as the plain data under its tag."""

    def construct_plain(self, _suffix: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return self.construct_sequence(node, deep=True)
        return node.value


_PlainLoader.add_multi_constructor("", _PlainLoader.construct_plain)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except (OSError, ValueError, RecursionError, TypeError, yaml.YAMLError):
        raise CheckpointError(f"{path} cannot be read as YAML.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no YAML mapping at its top.")
    return content
