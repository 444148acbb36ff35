"""Writes the `weights/` of a NeMo 2.0 checkpoint: megatron-core's torch_dist format, one file, chunk after chunk."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

_DATA_FILE = "__0_0.distcp"
_BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True)
class Chunk:
    """Part of a tensor: where it lies in the whole, and its values."""

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    values: Tensor


class DistributedWriter:
    """A `weights/` directory being filled; no more than a chunk is in memory.

    Without :meth:`finish` the checkpoint counts as an unfinished save, for us as for megatron-core.
    """

    def __init__(self, directory: Path) -> None:
        """``directory``: does not exist yet."""
        directory.mkdir(parents=True)
        self._directory = directory
        self._file = (directory / _DATA_FILE).open("wb")
        self._tensors: dict[str, TensorStorageMetadata] = {}
        self._objects: dict[str, BytesStorageMetadata] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}

    def __enter__(self) -> DistributedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, chunk: Chunk) -> None:
        """Append a chunk."""
        properties = TensorProperties(dtype=chunk.values.dtype)
        entry = self._tensors.setdefault(chunk.name, TensorStorageMetadata(properties, torch.Size(chunk.shape), []))
        offsets = torch.Size(chunk.offsets)
        entry.chunks.append(ChunkStorageMetadata(offsets, chunk.values.shape))
        # A view would be saved with all of its storage.
        self._places[MetadataIndex(chunk.name, offsets)] = self._append(chunk.values.clone().contiguous())

    def finish(self, extra_state: Iterable[str]) -> None:
        """Write the tables. ``extra_state``: names of Transformer Engine's entries, empty where FP8 is not used."""
        for name in extra_state:
            self._objects[name] = BytesStorageMetadata()
            self._places[MetadataIndex(name)] = self._append([torch.empty(0, dtype=torch.uint8)])
        self._file.flush()
        # Without a checkpoint_id, which would be the path on this machine.
        entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {**self._tensors, **self._objects}
        table = Metadata(entries, storage_data=self._places, storage_meta=StorageMeta())
        (self._directory / ".metadata").write_bytes(pickle.dumps(table))
        torch.save(_untrained_state(), self._directory / "common.pt")
        # Last, as megatron-core does.
        (self._directory / "metadata.json").write_text(json.dumps(_BACKENDS), encoding="utf-8")

    def _append(self, value: Any) -> _StorageInfo:
        archive = io.BytesIO()
        torch.save(value, archive)
        start = self._file.tell()
        self._file.write(archive.getvalue())
        return _StorageInfo(_DATA_FILE, start, self._file.tell() - start)


def _untrained_state() -> dict[str, Any]:
    """What a trainer that has not trained yet leaves in common.pt."""
    content = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    state: dict[str, Any] = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.4.0", "state_dict": {}}
    return state | {
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "content_metadata": content,
    }
