"""Reads the pickles of a torch distributed checkpoint without running anything that they name.

A pickle is a program that calls whatever it can import. Here it can import nothing: each global that a NeMo save is
known to refer to (exact pairs of module and name) becomes an inert record of the arguments it was called with, and
every other global is refused. So the list may name `builtins.getattr` without any attribute being read.
"""

from __future__ import annotations

import pickle
from collections.abc import Set
from pathlib import Path
from typing import Any, BinaryIO

import torch

from triton_worker.checkpoint.errors import CheckpointError

_DTYPES = {
    name: getattr(torch, name)
    for name in ("bfloat16", "float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
} | {name: getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2")}

_METADATA = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"

# What megatron-core 0.13 to 0.16 writes into `.metadata` under torch 2.6 to 2.13.
_KNOWN_OF_METADATA = frozenset(
    [("torch", "Size"), ("torch.serialization", "_get_layout")]
    + [(_METADATA, name) for name in ("Metadata", "TensorStorageMetadata", "BytesStorageMetadata")]
    + [(_METADATA, name) for name in ("ChunkStorageMetadata", "TensorProperties", "MetadataIndex", "StorageMeta")]
    + [(_METADATA, "_MEM_FORMAT_ENCODING")]
    + [(_FILESYSTEM, "_StorageInfo"), (_FILESYSTEM, "StorageMeta")]
    + [(_PLANNER, name) for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData")]
    + [(_MEGATRON, "MCoreMetadata"), (_MEGATRON, "MCoreSavePlan")]
    # Python 3.11.0 to 3.11.3 pickle an enum member as getattr(class, name); a checkpoint's path may be a Path.
    + [("builtins", "getattr"), ("pathlib", "PosixPath")]
)


class Record:
    """Stands for an object of the pickle: which global made it, with which arguments, and its restored state."""

    origin = ""
    __slots__ = ("arguments", "state")
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Record:
        record = super().__new__(cls)
        record.arguments = arguments
        record.state = None
        return record

    def __init__(self, *arguments: Any) -> None:
        """Takes what `__new__` has already kept."""

    def __setstate__(self, state: Any) -> None:
        # Defined so that BUILD lands here, also when it is aimed at the class, and sets no other attribute.
        self.state = state


class _Mapping(dict[Any, Any]):
    """Stands for OrderedDict."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Drops attributes: only the items matter."""


class InertUnpickler(pickle.Unpickler):
    """Loads Records, dtypes and plain data; raises RefusedGlobal for what is not known, and anything on other bytes."""

    def __init__(self, file: BinaryIO, known: Set[tuple[str, str]]) -> None:
        """`known`: module and name of each global that becomes a Record."""
        super().__init__(file)
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return _Mapping
        if (module, name) not in self._known:
            raise RefusedGlobal(f"{module}.{name}")
        # A new class for each pickle, so that none can leave a trace for the next one.
        return type(name, (Record,), {"__slots__": (), "origin": f"{module}.{name}"})


class RefusedGlobal(Exception):
    """The pickle names a global that is not known; the message is its name."""


def load_inert(path: Path) -> Any:
    """The pickle of a `.metadata` file with every object as a Record, a dtype or plain data.

    Raises CheckpointError when the file is missing, is no pickle, or names a global that a NeMo save does not.
    """
    try:
        with path.open("rb") as file:
            return InertUnpickler(file, _KNOWN_OF_METADATA).load()
    except RefusedGlobal as refused:
        raise CheckpointError(
            f"{path} refers to {str(refused)[:200]!r}, which a checkpoint has no use for; nothing in it was run."
        ) from None
    except OSError:
        raise CheckpointError(f"{path} is missing or cannot be read.") from None
    except Exception:  # The unpickler raises nearly any type on bytes that are no pickle.
        raise CheckpointError(f"{path} is damaged: it is not the metadata of a torch distributed checkpoint.") from None
