"""The command ``python -m triton_worker.convert``: a checkpoint from one layout to the other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from triton_worker.checkpoint import CheckpointError, open_checkpoint
from triton_worker.models.registry import UnknownModelFamily, conversion_of

_DIRECTIONS: dict[str, tuple[Literal["nemo", "huggingface"], str]] = {
    "hf-to-nemo": ("huggingface", "Hugging Face"),
    "nemo-to-hf": ("nemo", "NeMo 2.0"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Exits with 0, or with 1 and a sentence; a directory that was begun then is no checkpoint."""
    arguments = _parser().parse_args(argv)
    try:
        _convert(arguments.direction, arguments.source, arguments.destination, arguments.tokenizer)
    except (CheckpointError, UnknownModelFamily) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or arguments.destination}: {error.strerror}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m triton_worker.convert",
        description="Convert a checkpoint, bit for bit. No more than a few tensors are in memory at once.",
        allow_abbrev=False,
    )
    directions = parser.add_subparsers(dest="direction", required=True)
    for name, told in (
        ("hf-to-nemo", "Hugging Face in, NeMo 2.0 out."),
        ("nemo-to-hf", "NeMo 2.0 in, Hugging Face out."),
    ):
        direction = directions.add_parser(name, help=told, description=told, allow_abbrev=False)
        direction.add_argument("source", metavar="SRC", type=Path, help="The checkpoint's directory.")
        direction.add_argument("destination", metavar="DST", type=Path, help="A directory that does not exist yet.")
        direction.add_argument(
            "--tokenizer", metavar="DIR", type=Path, help="The tokenizer's files, where the checkpoint holds none."
        )
    return parser


def _convert(direction: str, source: Path, destination: Path, tokenizer: Path | None) -> None:
    layout, told = _DIRECTIONS[direction]
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError(f"{destination} is not empty; give a directory that does not exist yet.")
    checkpoint = open_checkpoint(source, tokenizer)
    if checkpoint.layout != layout:
        raise CheckpointError(f"{source} is no {told} checkpoint, which {direction} starts from.")
    conversion = conversion_of(checkpoint.family)
    write = conversion.write_nemo if direction == "hf-to-nemo" else conversion.write_huggingface
    with tqdm(unit="B", unit_scale=True, desc="Converting", leave=False) as bar:
        write(checkpoint, destination, lambda done, total: _show(bar, done, total))
    print(f"{destination} is written.")


def _show(bar: tqdm[Any], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


if __name__ == "__main__":
    main()
