"""Writes the weights of a Hugging Face checkpoint: safetensors files of bounded size, and the index over them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 4 * 2**30
"""A file holds no more than so much (but always one tensor), and so does memory."""


class SafetensorsWriter:
    """Takes one tensor after another; names are those of Hugging Face's `save_pretrained`."""

    def __init__(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._directory = directory
        self._shard_bytes = shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[tuple[Path, list[str]]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor; it is copied."""
        if self._pending and self._pending_bytes + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._pending[name] = tensor.clone().contiguous()
        self._pending_bytes += tensor.nbytes
        self._total_bytes += tensor.nbytes

    def finish(self) -> None:
        """Write what is pending, and the index where there are several files."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._shards[0][0].rename(self._directory / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, (path, names) in enumerate(self._shards, 1):
            final = path.rename(self._directory / f"model-{number:05}-of-{count:05}.safetensors")
            weight_map |= dict.fromkeys(names, final.name)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        (self._directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _flush(self) -> None:
        path = self._directory / f"unfinished-{len(self._shards) + 1:05}.safetensors"
        save_file(self._pending, path, metadata={"format": "pt"})
        self._shards.append((path, list(self._pending)))
        self._pending, self._pending_bytes = {}, 0
