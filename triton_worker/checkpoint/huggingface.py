"""Opens a Hugging Face checkpoint directory: config.json and model*.safetensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from triton_worker.checkpoint.checkpoint import (
    Checkpoint,
    has_tokenizer_files,
    read_image_processor,
    read_json_object,
)
from triton_worker.checkpoint.errors import CheckpointError

# config.json's model_type -> our name for the family.
_FAMILIES = {"llava": "llava", "mllama": "mllama", "qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_5_vl"}

# max_position_embeddings where config.json leaves it to the classes of transformers.
_DEFAULT_SEQ_LENGTH = {"llava": 2048, "mllama": 131072, "qwen2_vl": 32768, "qwen2_5_vl": 32768}

# The format's names: safetensors README, "Format".
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def open_huggingface_checkpoint(path: Path, tokenizer: Path | None) -> Checkpoint:
    """Open the checkpoint at `path`, with the tokenizer at `tokenizer` where given. Raises CheckpointError."""
    config = read_json_object(path / "config.json")
    family = _family(path / "config.json", config)
    tokenizer_directory = path if tokenizer is None else tokenizer
    if not has_tokenizer_files(tokenizer_directory):
        raise CheckpointError(
            f"{tokenizer_directory} holds no tokenizer files; give a directory with tokenizer.json: --tokenizer DIR."
        )
    return Checkpoint(
        path=path,
        layout="huggingface",
        family=family,
        config=config,
        tokenizer_directory=tokenizer_directory,
        seq_length=_seq_length(path / "config.json", config, _DEFAULT_SEQ_LENGTH[family]),
        weights=SafetensorsReader(path),
        image_processor=read_image_processor(path),
    )


class SafetensorsReader:
    """Tensors of model.safetensors, or of the files that model.safetensors.index.json lists."""

    def __init__(self, directory: Path) -> None:
        """Read the headers. Raises CheckpointError."""
        self._file_of: dict[str, Path] = {}
        self._headers: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self._listing, files = _weight_files(directory)
        for path in files:
            self._read_header(path)

    @property
    def names(self) -> Collection[str]:
        return self._headers.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._headers[name][0]

    def dtype(self, name: str) -> torch.dtype:
        return self._headers[name][1]

    def file_of(self, name: str) -> Path:
        return self._file_of.get(name, self._listing)

    def read(self, name: str, *slices: slice) -> Tensor:
        """`tensor[slices]` on the CPU; only that part is read. Raises CheckpointError when the file changed."""
        path = self._file_of[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_slice(name)[slices] if slices else file.get_tensor(name)
                return tensor
        except (SafetensorError, OSError):
            raise CheckpointError(f"{path} is damaged or cannot be read where {name!r} is stored.") from None

    def _read_header(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                described = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in headers.items()}
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing.") from None
        except (SafetensorError, OSError):
            raise CheckpointError(f"{path} is damaged: it is not a complete safetensors file.") from None
        for name, (shape, dtype) in described.items():
            if dtype not in _DTYPES:
                raise CheckpointError(f"{path} stores {name!r} as {dtype}; only {', '.join(_DTYPES)} can be read.")
            if name in self._headers:
                raise CheckpointError(f"{path} repeats {name!r}, which is also in {self._file_of[name]}.")
            self._headers[name] = (shape, _DTYPES[dtype])
            self._file_of[name] = path


def _weight_files(directory: Path) -> tuple[Path, list[Path]]:
    """The file that lists the tensors, and the files that hold them."""
    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return single, [single]
    files = read_json_object(index).get("weight_map")
    names = set(files.values()) if isinstance(files, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{index} does not list the files of this directory by tensor name (weight_map).")
    return index, [directory / name for name in sorted(names)]


def _family(path: Path, config: Mapping[str, Any]) -> str:
    model_type = config.get("model_type")
    if model_type not in _FAMILIES:
        raise CheckpointError(
            f"{path} describes a model of type {model_type!r}; types that can be served: {', '.join(_FAMILIES)}."
        )
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise CheckpointError(f"{path} says the weights are quantized ({method}); only unquantized ones can be read.")
    return _FAMILIES[model_type]


def _seq_length(path: Path, config: Mapping[str, Any], default: int) -> int:
    text = config.get("text_config")
    length = {**config, **(text if isinstance(text, Mapping) else {})}.get("max_position_embeddings", default)
    if type(length) is not int or length < 1:
        raise CheckpointError(f"{path}: max_position_embeddings is {length!r}; a positive number was expected.")
    return length
