"""The table of contents of a torch distributed checkpoint (`.metadata`) as plain, validated data.

Format: torch.distributed.checkpoint.metadata.Metadata, as written by megatron-core 0.13 to 0.16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from triton_worker.checkpoint.errors import CheckpointError
from triton_worker.checkpoint.unpickle import Record, load_inert


@dataclass(frozen=True)
class StoredChunk:
    """A box of a tensor and where its bytes are: a `torch.save` archive at `start` of `file`, `length` bytes long."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[StoredChunk, ...]


def read_metadata(path: Path) -> dict[str, StoredTensor]:
    """The tensors that the `.metadata` file at `path` lists, by name; entries that are bytes are left out.

    Every chunk lies within its tensor, and its file is a plain name next to `path` with the chunk's bytes inside it.
    Raises CheckpointError otherwise.
    """
    root = load_inert(path)
    try:
        fields = _fields(root)
        locations = _locations(fields["storage_data"])
        files = _DataFiles(path.parent)
        entries: dict[Any, Any] = fields["state_dict_metadata"]
        return {
            _checked(name, str): _stored_tensor(name, entry, locations, files)
            for name, entry in entries.items()
            if _origin(entry) == "TensorStorageMetadata"
        }
    except _Malformed as malformed:
        raise CheckpointError(f"{path} is damaged: {malformed}.") from None
    except (KeyError, IndexError, TypeError, ValueError):
        raise CheckpointError(f"{path} is damaged: it lacks fields of a torch distributed checkpoint.") from None


_Kind = TypeVar("_Kind")


class _Malformed(Exception):
    """Says what is wrong with the table; the caller adds the file's name."""


_Location = tuple[str, int, int]  # file, start, length
_Box = tuple[str, tuple[int, ...]]  # tensor name, offsets


class _DataFiles:
    """The files beside the metadata; the size of each is looked up once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sizes: dict[str, int] = {}

    def require(self, file: str, end: int, tensor: str) -> None:
        """Raise unless `file` is a plain name in this directory and has at least `end` bytes."""
        # One component without a separator: no way out of the directory.
        if file in ("", ".", "..") or "/" in file or "\\" in file or "\0" in file:
            raise _Malformed(f"{file[:200]!r} is not the plain name of a file in this directory")
        path = self._directory / file
        if file not in self._sizes:
            if not path.is_file():
                raise CheckpointError(f"{path} is missing; the checkpoint's .metadata lists it.")
            self._sizes[file] = path.stat().st_size
        if end > self._sizes[file]:
            raise CheckpointError(
                f"{path} is truncated: {tensor!r} ends at byte {end}, the file has {self._sizes[file]}."
            )


def _stored_tensor(name: str, entry: Any, locations: Mapping[_Box, _Location], files: _DataFiles) -> StoredTensor:
    fields = _fields(entry)
    shape = _size(fields["size"])
    dtype = _dtype(fields["properties"])
    stored = _checked(fields["chunks"], list)
    chunks = tuple(_stored_chunk(name, shape, dtype, chunk, locations, files) for chunk in stored)
    if sum(math.prod(chunk.shape) for chunk in chunks) != math.prod(shape):
        raise _Malformed(f"the chunks of {name!r} do not add up to its shape {list(shape)}")
    return StoredTensor(shape, dtype, chunks)


def _stored_chunk(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    chunk: Any,
    locations: Mapping[_Box, _Location],
    files: _DataFiles,
) -> StoredChunk:
    fields = _fields(chunk)
    offsets, extent = _size(fields["offsets"]), _size(fields["sizes"])
    if not len(offsets) == len(extent) == len(shape) or any(
        offset + length > whole for offset, length, whole in zip(offsets, extent, shape, strict=True)
    ):
        raise _Malformed(f"a chunk of {name!r} lies outside its shape {list(shape)}")
    if (name, offsets) not in locations:
        raise _Malformed(f"the chunk of {name!r} at {list(offsets)} is stored nowhere")
    file, start, length = locations[name, offsets]
    files.require(file, start + length, name)
    if math.prod(extent) * dtype.itemsize > length:
        raise _Malformed(f"a chunk of {name!r} is larger than the bytes it is stored in")
    return StoredChunk(offsets, extent, file, start, length)


def _locations(storage_data: Any) -> dict[_Box, _Location]:
    """Where each chunk is stored. Entries without an offset belong to bytes, which are not read."""
    locations: dict[_Box, _Location] = {}
    for index, info in _checked(storage_data, dict).items():
        key, place = _fields(index), _fields(info)
        if key.get("offset") is None:
            continue
        if place.get("transform_descriptors"):
            raise _Malformed(f"{key['fqn']!r} is stored compressed, which is not supported")
        box = (_checked(key["fqn"], str), _size(key["offset"]))
        locations[box] = (_checked(place["relative_path"], str), _natural(place["offset"]), _natural(place["length"]))
    return locations


def _dtype(properties: Any) -> torch.dtype:
    """The dtype of a pickled TensorProperties, whose state is (dtype, layout, requires_grad, memory format, pinned)."""
    return _checked(_checked(_checked(properties, Record).state, tuple)[0], torch.dtype)


def _fields(value: Any) -> dict[str, Any]:
    """The attributes that a record's object would have had."""
    return _checked(_checked(value, Record).state, dict)


def _origin(value: Any) -> str:
    return _checked(value, Record).origin.rpartition(".")[2]


def _size(value: Any) -> tuple[int, ...]:
    """The numbers of a pickled torch.Size."""
    (numbers,) = _checked(value, Record).arguments
    return tuple(_natural(number) for number in _checked(numbers, tuple))


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise _Malformed(f"{str(value)[:50]!r} stands where an offset or a size was expected")
    return value


def _checked(value: Any, kind: type[_Kind]) -> _Kind:
    if not isinstance(value, kind):
        expected = "an object" if kind is Record else kind.__name__
        raise _Malformed(f"{type(value).__name__} stands where {expected} was expected")
    return value
