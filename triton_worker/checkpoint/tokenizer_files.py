"""The files of a tokenizer and of the picture processing, which go with a model from one checkpoint to the next."""

from __future__ import annotations

import shutil
from pathlib import Path

from triton_worker.checkpoint.checkpoint import Checkpoint

_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    "tokenizer.model",
    *("added_tokens.json", "chat_template.jinja", "chat_template.json", "preprocessor_config.json"),
    *("processor_config.json", "generation_config.json"),
)


def copy_tokenizer_files(source: Checkpoint, directory: Path) -> None:
    """Copy those that `source` has into `directory`, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        for origin in (source.tokenizer_directory, source.path):
            if (origin / name).is_file() and not (directory / name).exists():
                shutil.copyfile(origin / name, directory / name)
