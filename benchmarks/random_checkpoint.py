"""Write a checkpoint of a published size with random weights, to serve where no real one is.

python -m benchmarks.random_checkpoint 3b DIRECTORY

It is of Hugging Face's layout and has the tokenizer of the test fixture, whose few hundred tokens are all that it says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.shapes import SHAPES, build_huggingface
from tests.triton_worker.models.reference import HF_FIXTURE
from triton_worker.checkpoint import open_checkpoint
from triton_worker.checkpoint.tokenizer_files import copy_tokenizer_files
from triton_worker.models.registry import prompts_of
from triton_worker.processing.tokenizer import Tokenizer


def write(shape: str, directory: Path) -> None:
    """Write it in bfloat16; ``directory`` is made."""
    fixture = open_checkpoint(HF_FIXTURE)
    tokenizer = Tokenizer(fixture.tokenizer_directory, prompts_of(fixture.family).TOKENIZER)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_huggingface(shape, torch.bfloat16, device)
    model.generation_config.eos_token_id = sorted(tokenizer.end_token_ids)
    for name, token_id in tokenizer.picture_token_ids.items():
        setattr(model.config, name, token_id)
    model.save_pretrained(directory)
    copy_tokenizer_files(fixture, directory)


def main() -> None:
    """Write and say so."""
    parser = argparse.ArgumentParser(prog="benchmarks.random_checkpoint", description=__doc__.partition("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    write(options.shape, options.directory)
    print(f"{options.directory} is written.")


if __name__ == "__main__":
    main()
