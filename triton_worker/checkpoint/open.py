"""Opens a checkpoint directory, whichever of the known layouts it has."""

from __future__ import annotations

from pathlib import Path

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.errors import CheckpointError
from triton_worker.checkpoint.huggingface import open_huggingface_checkpoint
from triton_worker.checkpoint.nemo import open_nemo_checkpoint


def open_checkpoint(path: str | Path, tokenizer: str | Path | None = None) -> Checkpoint:
    """Open the NeMo 2.0 or Hugging Face checkpoint directory at `path`; no weight is read yet.

    `tokenizer` names a directory of tokenizer files to use in place of the checkpoint's own.
    Nothing stored in the checkpoint is executed. Raises CheckpointError when it cannot be served.
    """
    path = Path(path)
    override = None if tokenizer is None else Path(tokenizer)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; a NeMo 2.0 or Hugging Face checkpoint directory was expected.")
    if not path.is_dir():
        raise CheckpointError(_why_a_file_is_refused(path))
    if (path / "weights").is_dir() or (path / "context").is_dir():
        return open_nemo_checkpoint(path, override)
    if (path / "adapter_config.json").exists():
        raise CheckpointError(f"{path} holds a PEFT adapter; merge it into its base model and give that.")
    if (path / "config.json").exists():
        return open_huggingface_checkpoint(path, override)
    if path.name in ("weights", "context") and (path.parent / "context").is_dir():
        raise CheckpointError(f"{path} is the inside of a NeMo 2.0 checkpoint; give the directory above it.")
    raise CheckpointError(
        f"{path} is not a checkpoint: neither weights/ and context/ (NeMo 2.0) nor config.json (Hugging Face) is in it."
    )


def _why_a_file_is_refused(path: Path) -> str:
    if path.suffix == ".nemo":
        return f"{path} is a NeMo 1.0 archive; a NeMo 2.0 checkpoint is a directory with weights/ and context/ in it."
    return f"{path} is a file; a NeMo 2.0 or Hugging Face checkpoint directory was expected."
