"""Whatever has become of a checkpoint's files, it is served or refused with a sentence; never anything else."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest
import torch

from tests.triton_worker.checkpoint.stored import HF_FIXTURE, NEMO_FIXTURE
from triton_worker.checkpoint import CheckpointError, open_checkpoint
from triton_worker.models.qwen_vl.prompts import TOKENIZER
from triton_worker.models.registry import UnknownModelFamily, load_model
from triton_worker.processing.chat_template import ChatTemplate
from triton_worker.processing.tokenizer import Tokenizer

CASES = 30


def truncated(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def flipped(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 8)):
        # Most of a file is numbers, which may be any: its ends are where it says what it is.
        end = random.choice([len(data), min(len(data), 400)])
        changed[random.randrange(end)] ^= 1 << random.randrange(8)
    return bytes(changed)


def spliced(data: bytes, random: Random) -> bytes:
    start, stop = sorted(random.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + random.randbytes(random.randrange(64)) + data[stop:]


def emptied(data: bytes, random: Random) -> bytes:
    return random.choice([b"", b"{}", b"[]", b"null", b"\x80\x04N.", b"[" * 100_000])


@pytest.fixture(scope="module", params=[NEMO_FIXTURE, HF_FIXTURE], ids=["nemo", "huggingface"])
def copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz") / "checkpoint"
    shutil.copytree(request.param, directory)
    return directory


def serve(directory: Path) -> None:
    """All that is read of a checkpoint before it answers."""
    checkpoint = open_checkpoint(directory)
    load_model(checkpoint, torch.float32, torch.device("cpu"))
    Tokenizer(checkpoint.tokenizer_directory, TOKENIZER)
    ChatTemplate.of(checkpoint.tokenizer_directory)


def check(directory: Path, what: str) -> bool:
    """Whether it was refused."""
    try:
        serve(directory)
    except (CheckpointError, UnknownModelFamily) as error:
        sentence = str(error)
        assert sentence.endswith((".", ")")), (what, sentence)
        assert "Traceback" not in sentence
        return True
    return False


def test_damaged_files(copy: Path) -> None:
    serve(copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    refused = 0
    for case in range(CASES):
        random = Random(case)
        path = random.choice(files)
        damage = random.choice([truncated, flipped, spliced, emptied])
        data = path.read_bytes()
        try:
            path.write_bytes(damage(data, random))
            refused += check(copy, f"{case}: {damage.__name__} {path.name}")
        finally:
            path.write_bytes(data)
    assert refused > CASES / 4


def test_missing_and_exchanged_files(copy: Path) -> None:
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    aside = copy.parent / "aside"
    for path, other in zip(files, [*files[1:], files[0]], strict=True):
        path.rename(aside)
        try:
            check(copy, f"without {path.name}")
            shutil.copyfile(other, path)
            check(copy, f"{other.name} as {path.name}")
        finally:
            aside.replace(path)
    serve(copy)
