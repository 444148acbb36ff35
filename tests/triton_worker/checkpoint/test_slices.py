"""A part of what is stored whole: no more of the file is read than that takes, and it is the right part."""

from __future__ import annotations

import math
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.triton_worker.checkpoint.stored import write_checkpoint, write_metadata
from triton_worker.checkpoint import CheckpointError, box_reader
from triton_worker.checkpoint.archive import DamagedArchive, NotATensor, find_tensor
from triton_worker.checkpoint.box_reader import read_box
from triton_worker.checkpoint.boxes import box_of, slices_of
from triton_worker.checkpoint.distributed import DistributedCheckpoint

NAME = "module.decoder.layers.weight"
SLACK = 64 * 1024
"""For the archive's directory and description, and for what the test's own process reads beside it."""


def bytes_read() -> int:
    """What this process has asked of files so far, whether or not a disk was needed."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])


@pytest.mark.parametrize(
    ("slices", "needed"),
    [
        ((slice(0, 1),), 1.0),
        ((slice(0, 1), slice(512, 768)), 1 / 4),
        ((slice(0, 1), slice(1000, 1024)), 24 / 1024),
        # Columns are cut out of whole rows.
        ((slice(0, 1), slice(None), slice(0, 1024)), 1.0),
        ((slice(0, 1), slice(256, 384), slice(1024, 2048)), 1 / 8),
        # A row of this one is a layer: what is skipped between two runs is large.
        ((slice(0, 2), slice(0, 128)), 1 / 4),
    ],
    ids=str,
)
def test_no_more_is_read_than_the_rows_of_the_slice(tmp_path: Path, slices: tuple[slice, ...], needed: float) -> None:
    values = torch.arange(2 * 1024 * 2048, dtype=torch.float32).reshape(2, 1024, 2048)
    layers = [((0, 0, 0), values)] if slices[0].stop == 2 else [((i, 0, 0), values[i : i + 1]) for i in (0, 1)]
    write_checkpoint(tmp_path, {NAME: ((2, 1024, 2048), layers)})
    checkpoint = DistributedCheckpoint(tmp_path)
    before = bytes_read()
    part = checkpoint.read(NAME, *slices)
    read = bytes_read() - before
    assert torch.equal(part, values[slices])
    assert read <= needed * values[0].nbytes + SLACK


@pytest.mark.parametrize("worth_skipping", [0, 2**20])
@pytest.mark.parametrize("block", [1, 100, 2**20])
def test_any_box_of_any_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth_skipping: int, block: int) -> None:
    monkeypatch.setattr(box_reader, "_WORTH_SKIPPING", worth_skipping)
    monkeypatch.setattr(box_reader, "_BLOCK", block)
    chance = random.Random(0)
    for case in range(60):
        shape = [chance.randint(1, 6) for _ in range(chance.randint(0, 4))]
        dtype = chance.choice([torch.bfloat16, torch.float32, torch.int64, torch.bool])
        values = torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(dtype)
        slices = tuple(slice(chance.randint(0, size), chance.randint(0, size + 1)) for size in shape)
        path = tmp_path / "values"
        path.write_bytes(b"before" + values.reshape(-1).view(torch.uint8).numpy().tobytes())
        box = box_of(tuple(shape), slices)
        with path.open("rb", buffering=0) as file:
            assert torch.equal(read_box(file, 6, shape, dtype, box), values[slices_of(box)]), (case, shape, box)


def test_a_file_that_ends_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "values"
    path.write_bytes(bytes(7))
    with path.open("rb", buffering=0) as file, pytest.raises(OSError, match="1 bytes are missing"):
        read_box(file, 0, (8,), torch.uint8, [(0, 8)])


@pytest.mark.parametrize(
    "stored",
    [
        torch.arange(30.0).reshape(5, 6).t(),
        torch.arange(60.0).reshape(10, 6)[::2].t(),
        torch.arange(40.0)[10:].reshape(6, 5),
        torch.arange(30.0).reshape(6, 5).to(torch.float8_e4m3fn),
        torch.arange(30).reshape(6, 5) > 7,
    ],
    ids=["transposed", "with gaps", "from the middle", "float8", "bool"],
)
def test_a_tensor_is_read_however_it_lies_in_its_archive(tmp_path: Path, stored: Tensor) -> None:
    metadata = write_checkpoint(tmp_path, {NAME: ((6, 5), [((0, 0), stored.contiguous())])})
    [place] = [info for index, info in metadata.storage_data.items() if index.fqn == NAME]
    path = tmp_path / place.relative_path
    torch.save(stored, path)  # A view keeps its strides, and its storage the rest.
    place.length = path.stat().st_size
    write_metadata(tmp_path, metadata)
    part = DistributedCheckpoint(tmp_path).read(NAME, slice(1, 4), slice(2, 5))
    assert part.dtype == stored.dtype
    assert torch.equal(part.float(), stored[1:4, 2:5].float())


def edited(description: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """The archive with another description of the same length, all else in its place."""

    def edit(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            before = archive.read("values/data.pkl")
        after = description(before)
        assert len(after) == len(before)
        path.write_bytes(path.read_bytes().replace(before, after))

    return edit


def replaced(old: bytes, new: bytes) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))

    return edit


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "damage",
    [
        # The shape is (1000,): K, M and J are pickle's numbers of one, two and four bytes.
        edited(lambda d: d.replace(b"K\0M\xe8\3\x85", b"K\1M\xe8\3\x85")),
        edited(lambda d: d.replace(b"K\0M\xe8\3\x85", b"K\0M\xe9\3\x85")),
        edited(lambda d: d.replace(b"\x85q\6K\1\x85", b"\x85q\6K\2\x85")),
        edited(lambda d: d.replace(b"FloatStorage", b"Float_torage")),
        edited(lambda d: d.replace(b"K\0M\xe8\3\x85", b"K\0NNN\x85")),
        edited(lambda d: b"." * len(d)),
        replaced(b"little", b"biggie"),
        replaced(b"PK\3\4", b"PK\3\5"),
        replaced(b"data/0", b"data/1"),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[1000:]),
        lambda path: path.write_bytes(b""),
        compressed,
    ],
    ids=[
        *("offset", "size", "stride", "storage", "numbers", "no pickle", "byte order", "record", "key"),
        *("end cut off", "start cut off", "empty", "compressed"),
    ],
)
def test_an_archive_that_lies_is_refused(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    path = tmp_path / "values"
    torch.save(torch.arange(1000.0), path)
    with path.open("rb", buffering=0) as file:
        found = find_tensor(file, 0, path.stat().st_size)
        assert torch.equal(read_box(file, found.start, (1000,), torch.float32, [(0, 1000)]), torch.arange(1000.0))
    damage(path)
    with path.open("rb", buffering=0) as file, pytest.raises((DamagedArchive, NotATensor)):
        find_tensor(file, 0, path.stat().st_size)


def test_any_changed_byte_of_the_description_gives_a_tensor_or_a_sentence(tmp_path: Path) -> None:
    """Nor does it read beyond what is stored."""
    write_checkpoint(tmp_path, {NAME: ((40, 50), [((0, 0), torch.zeros(40, 50))])})
    path = tmp_path / "__0_0.distcp"
    sound = path.read_bytes()
    values = sound.index(bytes(4 * 40 * 50))
    outside = [*range(values), *range(values + 4 * 40 * 50, len(sound))]
    checkpoint, chance, sentences = DistributedCheckpoint(tmp_path), random.Random(1), []
    for _ in range(600):
        changed = bytearray(sound)
        changed[chance.choice(outside)] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            assert checkpoint.read(NAME, slice(3, 9), slice(7, 20)).shape == (6, 13)
        except CheckpointError as error:
            sentences.append(str(error))
    assert len(sentences) > 60
    assert all(str(path) in sentence for sentence in sentences)


def test_columns_of_more_rows_than_the_buffer_holds(tmp_path: Path) -> None:
    """Rows pass through the buffer block by block, the last one being shorter."""
    shape = (3, 700, 4000)
    values = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)
    path = tmp_path / "values"
    path.write_bytes(values.numpy().tobytes())
    box = [(0, 3), (1, 699), (1000, 2000)]
    with path.open("rb", buffering=0) as file:
        assert torch.equal(read_box(file, 0, shape, torch.int32, box), values[slices_of(box)])
