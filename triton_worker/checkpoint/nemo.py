"""Opens a NeMo 2.0 checkpoint directory: weights/ and context/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from triton_worker.checkpoint.checkpoint import (
    Checkpoint,
    has_tokenizer_files,
    read_image_processor,
    read_json_object,
)
from triton_worker.checkpoint.context import read_model_context
from triton_worker.checkpoint.distributed import DistributedCheckpoint
from triton_worker.checkpoint.errors import CheckpointError

# The class of the model and its model_version -> our name for the family. Other classes are refused by name.
_QWEN2_VL_MODEL = "nemo.collections.vlm.qwen2vl.model.base.Qwen2VLModel"
_NEVA = "nemo.collections.vlm.neva.model"
_FAMILIES = {
    (_QWEN2_VL_MODEL, "qwen2-vl"): "qwen2_vl",
    (_QWEN2_VL_MODEL, "qwen25-vl"): "qwen2_5_vl",
    (f"{_NEVA}.llava.LlavaModel", None): "llava",
    (f"{_NEVA}.base.NevaModel", None): "llava",
    ("nemo.collections.vlm.mllama.model.base.MLlamaModel", None): "mllama",
}

# Where the configuration of a family's language model is, and its seq_length where a context holds nothing but a
# preset's name (nemo.collections.llm and .vlm).
_LANGUAGE = {"mllama": ("language_model_config", 8192)}
_DEFAULT_LANGUAGE = ("language_transformer_config", 4096)
_PRESET_SEQ_LENGTH = {f"Qwen25VLConfig{size}": 131072 for size in ("7B", "32B", "72B")}


def open_nemo_checkpoint(path: Path, tokenizer: Path | None) -> Checkpoint:
    """Open the NeMo 2.0 checkpoint at `path`, with the tokenizer at `tokenizer` where given. Raises CheckpointError."""
    _check_directories(path)
    model = read_model_context(path / "context")
    family = _family(path, model)
    tokenizer_directory = _tokenizer_directory(path, model, tokenizer)
    return Checkpoint(
        path=path,
        layout="nemo",
        family=family,
        config=model,
        tokenizer_directory=tokenizer_directory,
        seq_length=_seq_length(path, family, model),
        weights=DistributedCheckpoint(path / "weights"),
        image_processor=read_image_processor(tokenizer_directory),
    )


def _check_directories(path: Path) -> None:
    weights = path / "weights"
    if not weights.is_dir():
        raise CheckpointError(f"{weights} is missing; a NeMo 2.0 checkpoint keeps its tensors there.")
    if (weights / "adapter_metadata.json").exists():
        raise CheckpointError(
            f"{weights / 'adapter_metadata.json'} marks a PEFT adapter; merge it into its base model and give that."
        )
    if not (weights / "metadata.json").exists():
        raise CheckpointError(f"{weights / 'metadata.json'} is missing: the save was not finished; save it again.")
    backend = read_json_object(weights / "metadata.json").get("sharded_backend")
    if backend != "torch_dist":
        raise CheckpointError(
            f"{weights / 'metadata.json'} names the format {backend!r}; only 'torch_dist' can be read, so save the "
            f"checkpoint with save_ckpt_format='torch_dist'."
        )
    if not (path / "context").is_dir():
        raise CheckpointError(f"{path / 'context'} is missing; a NeMo 2.0 checkpoint describes its model there.")


def _family(path: Path, model: Mapping[str, Any]) -> str:
    target, version = model.get("_target_"), model.get("model_version")
    for known, family in _FAMILIES.items():
        if (target, version) == known:
            return family
    named = f"{target} ({version})" if version else f"{target}"
    served = ", ".join(f"{cls.rpartition('.')[2]} ({of})" if of else cls.rpartition(".")[2] for cls, of in _FAMILIES)
    raise CheckpointError(
        f"{path / 'context' / 'io.json'} describes a model of class {named}; classes that can be served: {served}."
    )


def _tokenizer_directory(path: Path, model: Mapping[str, Any], override: Path | None) -> Path:
    if override is not None:
        if not has_tokenizer_files(override):
            raise CheckpointError(f"{override} holds no tokenizer: tokenizer.json was expected in that directory.")
        return override
    context = path / "context"
    tokenizer = model.get("tokenizer")
    stored = tokenizer.get("pretrained_model_name") if isinstance(tokenizer, Mapping) else None
    if isinstance(stored, str) and _is_inside(stored) and has_tokenizer_files(context / stored):
        return context / stored
    name = stored.get("attr") if isinstance(stored, Mapping) else stored
    origin = f" but only names {name!r}" if isinstance(name, str) else ""
    raise CheckpointError(
        f"{context} holds no tokenizer files{origin}; give a directory with that tokenizer's files: --tokenizer DIR."
    )


def _is_inside(relative: str) -> bool:
    """Whether a stored path stays below the directory it is relative to."""
    path = PurePosixPath(relative)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _seq_length(path: Path, family: str, model: Mapping[str, Any]) -> int:
    config = model.get("config")
    config = config if isinstance(config, Mapping) else {}
    section, default = _LANGUAGE.get(family, _DEFAULT_LANGUAGE)
    language = config.get(section)
    language = language if isinstance(language, Mapping) else {}
    preset = str(config.get("_target_")).rpartition(".")[2]
    length = language.get("seq_length", _PRESET_SEQ_LENGTH.get(preset, default))
    if type(length) is not int or length < 1:
        raise CheckpointError(
            f"{path / 'context' / 'io.json'}: seq_length is {length!r}; a positive number of tokens was expected."
        )
    return length
