"""Writes small torch distributed checkpoints, sound or damaged, as megatron-core lays them out."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

FIXTURES = Path(__file__).parents[2] / "fixtures"
NEMO_FIXTURE = FIXTURES / "nemo2-qwen25vl-tiny"
HF_FIXTURE = FIXTURES / "hf-qwen25vl-tiny"

Chunks = Sequence[tuple[tuple[int, ...], Tensor]]  # offsets and content


def write_checkpoint(directory: Path, tensors: Mapping[str, tuple[tuple[int, ...], Chunks]]) -> Metadata:
    """Write each tensor, given as (shape, chunks), into two data files by turns; return what .metadata holds."""
    directory.mkdir(exist_ok=True)
    entries: dict[str, Any] = {"module.layer._extra_state/shard_0_1": BytesStorageMetadata()}
    places: dict[MetadataIndex, _StorageInfo] = {
        MetadataIndex("module.layer._extra_state/shard_0_1"): _StorageInfo("__0_0.distcp", 0, 0)
    }
    files = {name: bytearray() for name in ("__0_0.distcp", "__0_1.distcp")}
    count = 0
    for name, (shape, chunks) in tensors.items():
        properties = TensorProperties(dtype=chunks[0][1].dtype)
        boxes = [ChunkStorageMetadata(torch.Size(offsets), part.shape) for offsets, part in chunks]
        entries[name] = TensorStorageMetadata(properties, torch.Size(shape), boxes)
        for offsets, part in chunks:
            file = sorted(files)[count % 2]
            archive = io.BytesIO()
            torch.save(part.clone(), archive)
            start, length = len(files[file]), len(archive.getvalue())
            places[MetadataIndex(name, offsets)] = _StorageInfo(file, start, length)
            files[file] += archive.getvalue()
            count += 1
    for file, content in files.items():
        (directory / file).write_bytes(content)
    metadata = Metadata(state_dict_metadata=entries, storage_data=places)
    write_metadata(directory, metadata)
    return metadata


def write_metadata(directory: Path, metadata: object) -> None:
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))


def copy_of(fixture: Path, directory: Path) -> Path:
    return Path(shutil.copytree(fixture, directory / fixture.name))
