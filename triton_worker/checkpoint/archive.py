"""Finds where the values of a tensor lie that `torch.save` wrote, without reading them and without running anything.

The archive is a zip file, not compressed: `data.pkl` describes the tensor, `data/<key>` holds its storage. `torch.load`
could only read all of it.
"""

from __future__ import annotations

import io
import operator
import struct
from dataclasses import dataclass
from io import FileIO
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

from triton_worker.checkpoint.unpickle import InertUnpickler, Record, RefusedGlobal

_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}
_REBUILD = "torch._utils._rebuild_tensor_v2"
_REBUILD_WITH_DTYPE = "torch._utils._rebuild_tensor_v3"  # of dtypes that have no class of storage
_KNOWN = frozenset(
    [("torch", name) for name in _STORAGES]
    + [("torch.storage", "UntypedStorage")]
    + [("torch._utils", name.rpartition(".")[2]) for name in (_REBUILD, _REBUILD_WITH_DTYPE)]
)


@dataclass(frozen=True)
class ArchivedTensor:
    """layout: shape, strides and dtype, on the meta device. start: the byte of the file where its values begin."""

    layout: Tensor
    start: int


class NotATensor(Exception):
    """The archive is sound, and holds something other than a strided tensor."""


class DamagedArchive(Exception):
    """The bytes are no archive, or contradict one another."""


def find_tensor(file: FileIO, start: int, length: int) -> ArchivedTensor:
    """The tensor whose archive is the `length` bytes at `start` of `file`; its values lie within them.

    Raises NotATensor, DamagedArchive or OSError.
    """
    try:
        return _find_tensor(_FileSection(file, start, length))
    except (NotATensor, OSError):
        raise
    except RefusedGlobal:
        raise NotATensor from None
    except Exception:  # zipfile and the unpickler raise nearly any type on bytes that are none of theirs.
        raise DamagedArchive from None


def _find_tensor(section: _FileSection) -> ArchivedTensor:
    archive = _Archive(section)
    if archive.read("byteorder", default=b"little") != b"little":
        raise DamagedArchive
    rebuild = _TensorUnpickler(io.BytesIO(archive.read("data.pkl")), _KNOWN).load()
    if not isinstance(rebuild, Record) or rebuild.origin not in (_REBUILD, _REBUILD_WITH_DTYPE):
        raise NotATensor
    (_, storage, key, _, _), offset, shape, strides, *others = rebuild.arguments
    kind = storage.origin.rpartition(".")[2]
    dtype = others[2] if rebuild.origin == _REBUILD_WITH_DTYPE else _STORAGES[kind]
    # torch checks the numbers: sizes and strides of a tensor without memory.
    layout = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    start, length = archive.place(f"data/{key}")
    skipped = operator.index(offset) * dtype.itemsize
    if not 0 <= skipped <= length - layout.untyped_storage().nbytes():
        raise DamagedArchive
    return ArchivedTensor(layout, section.start + start + skipped)


class _TensorUnpickler(InertUnpickler):
    def persistent_load(self, pid: Any) -> Any:
        """A storage is named by ("storage", class, key, device, number of elements)."""
        return pid


class _Archive:
    """The records of a torch archive, all below one directory."""

    def __init__(self, section: _FileSection) -> None:
        self._section = section
        self._entries = {info.filename.partition("/")[2]: info for info in ZipFile(section).infolist()}

    def place(self, name: str) -> tuple[int, int]:
        """Where in the section the record begins, and its length in bytes. Raises KeyError, DamagedArchive."""
        info = self._entries[name]
        self._section.seek(info.header_offset)
        signature, *lengths = struct.unpack("<4s22x2H", self._section.read(30))
        start = info.header_offset + 30 + sum(lengths)  # of the name and of what aligns the record
        outside = start + info.file_size > self._section.length
        if signature != b"PK\3\4" or info.compress_type != ZIP_STORED or outside:
            raise DamagedArchive
        return start, info.file_size

    def read(self, name: str, default: bytes | None = None) -> bytes:
        if default is not None and name not in self._entries:
            return default
        start, length = self.place(name)
        self._section.seek(start)
        return self._section.read(length)


class _FileSection(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: FileIO, start: int, length: int) -> None:
        super().__init__()
        self.start = start
        self.length = length
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.length}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self.length - self._position)]
        self._file.seek(self.start + self._position)
        count = self._file.readinto(view) or 0
        self._position += count
        return count
