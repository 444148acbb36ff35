from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from tests.triton_worker.checkpoint.stored import NEMO_FIXTURE, copy_of, write_checkpoint, write_metadata
from triton_worker.checkpoint import CheckpointError
from triton_worker.checkpoint.distributed import DistributedCheckpoint

NAME = "module.decoder.layers.weight"
WHOLE = torch.arange(2 * 6 * 5, dtype=torch.float32).reshape(2, 6, 5)
CHUNKS = [((i, j, 0), WHOLE[i : i + 1, j : j + 3]) for i, j in itertools.product((0, 1), (0, 3))]


def written(directory: Path) -> Metadata:
    optimizer = ((4,), [((0,), torch.zeros(4))])
    scalar = ((), [((), torch.tensor(7))])
    tensors = {NAME: ((2, 6, 5), CHUNKS), "optimizer.state.exp_avg": optimizer, "module.scalar": scalar}
    return write_checkpoint(directory, tensors)


def test_names_shapes_and_dtypes_of_the_model_alone(tmp_path: Path) -> None:
    written(tmp_path)
    checkpoint = DistributedCheckpoint(tmp_path)
    assert sorted(checkpoint.names) == [NAME, "module.scalar"]
    assert checkpoint.shape(NAME) == (2, 6, 5)
    assert checkpoint.dtype(NAME) == torch.float32
    assert checkpoint.read("module.scalar") == 7


@pytest.mark.parametrize(
    "slices",
    [
        (),
        (slice(1, 2),),
        (slice(0, 2), slice(2, 4)),
        (slice(None), slice(4, 6), slice(-2, None)),
        (slice(1, 1),),
        (slice(0, 1), slice(5, 2)),
    ],
    ids=str,
)
def test_read_gives_the_slice(tmp_path: Path, slices: tuple[slice, ...]) -> None:
    written(tmp_path)
    assert torch.equal(DistributedCheckpoint(tmp_path).read(NAME, *slices), WHOLE[slices])


def test_read_touches_only_overlapping_chunks(tmp_path: Path) -> None:
    written(tmp_path)
    # The four chunks alternate between the files, so layer 0's second half lies in the second file alone.
    checkpoint = DistributedCheckpoint(tmp_path)
    (tmp_path / "__0_0.distcp").unlink()
    assert torch.equal(checkpoint.read(NAME, slice(0, 1), slice(3, 6)), WHOLE[:1, 3:])
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp"):
        checkpoint.read(NAME, slice(0, 1))


def test_a_step_is_not_a_box(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(ValueError, match="box"):
        DistributedCheckpoint(tmp_path).read(NAME, slice(None, None, 2))


def test_the_whole_fixture_reads() -> None:
    checkpoint = DistributedCheckpoint(NEMO_FIXTURE / "weights")
    for name in checkpoint.names:
        tensor = checkpoint.read(name)
        assert (tuple(tensor.shape), tensor.dtype) == (checkpoint.shape(name), checkpoint.dtype(name))
        assert torch.equal(checkpoint.read(name, slice(0, 1)), tensor[:1])


def test_an_unknown_name_is_an_error_that_names_the_file() -> None:
    with pytest.raises(CheckpointError, match=r"\.metadata lists no tensor 'module\.x'"):
        DistributedCheckpoint(NEMO_FIXTURE / "weights").shape("module.x")


Damage = Callable[[Metadata], None]


def place(metadata: Metadata, **changes: Any) -> None:
    info = metadata.storage_data[MetadataIndex(NAME, (0, 0, 0))]
    for field, value in changes.items():
        setattr(info, field, value)


def chunk(metadata: Metadata, **changes: Any) -> None:
    for field, value in changes.items():
        setattr(metadata.state_dict_metadata[NAME].chunks[0], field, value)


def entry(metadata: Metadata, **changes: Any) -> None:
    for field, value in changes.items():
        setattr(metadata.state_dict_metadata[NAME], field, value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda m: place(m, relative_path="../__0_0.distcp"), "plain name"),
        (lambda m: place(m, relative_path="/etc/passwd"), "plain name"),
        (lambda m: place(m, relative_path="a\\b"), "plain name"),
        (lambda m: place(m, relative_path=".."), "plain name"),
        (lambda m: place(m, relative_path="nul\0"), "plain name"),
        (lambda m: place(m, relative_path=7), "int stands where str"),
        (lambda m: place(m, relative_path="__9_9.distcp"), r"__9_9\.distcp is missing"),
        (lambda m: place(m, offset=10**6), r"__0_0\.distcp is truncated"),
        (lambda m: place(m, offset=-1), "offset or a size"),
        (lambda m: place(m, offset=True), "offset or a size"),
        (lambda m: place(m, length=2**70), "offset or a size"),
        (lambda m: place(m, length=3), "larger than the bytes"),
        (lambda m: place(m, transform_descriptors=["zstd"]), "compressed"),
        (lambda m: chunk(m, offsets=torch.Size((1, 4, 0))), "outside its shape"),
        (lambda m: chunk(m, offsets=torch.Size((0, 0))), "outside its shape"),
        (lambda m: chunk(m, offsets=torch.Size((0, 1, 0))), "stored nowhere"),
        (lambda m: chunk(m, sizes=torch.Size((1, 3, 6))), "outside its shape"),
        (lambda m: chunk(m, sizes=torch.Size((1, 2, 5))), "do not add up"),
        (lambda m: chunk(m, sizes=(1, 3, 5)), "tuple stands where an object"),
        (lambda m: entry(m, size=torch.Size((2, 6, 50))), "do not add up"),
        (lambda m: entry(m, chunks=None), "NoneType stands where list"),
        (lambda m: entry(m, properties=None), "NoneType stands where an object"),
        (lambda m: m.state_dict_metadata.update({NAME: 5}), "int stands where an object"),
        (lambda m: setattr(m, "storage_data", None), "NoneType stands where dict"),
        (lambda m: delattr(m, "storage_data"), "lacks fields"),
    ],
)
def test_a_table_of_contents_that_lies_is_refused(tmp_path: Path, damage: Damage, words: str) -> None:
    metadata = written(tmp_path)
    damage(metadata)
    write_metadata(tmp_path, metadata)
    with pytest.raises(CheckpointError, match=words) as caught:
        DistributedCheckpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_chunks_that_overlap_and_leave_a_gap_are_refused(tmp_path: Path) -> None:
    one, other = torch.ones(1, 2), torch.zeros(1, 2)
    write_checkpoint(tmp_path, {NAME: ((1, 4), [((0, 0), one), ((0, 1), other)])})
    with pytest.raises(CheckpointError, match="gaps or overlap"):
        DistributedCheckpoint(tmp_path).read(NAME)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (torch.zeros(1, 3, 4), r"torch.float32 \[1, 3, 4\].*torch.float32 \[1, 3, 5\]"),
        (torch.zeros(1, 3, 5, dtype=torch.int32), r"torch.int32.*torch.float32"),
        ({"not": torch.zeros(1)}, "no plain tensor"),
        (torch.zeros(1, 3, 5).to_sparse(), "no plain tensor"),
        (torch.nn.Linear(1, 1), "no plain tensor"),
    ],
    ids=["shape", "dtype", "dict", "sparse", "module"],
)
def test_a_chunk_that_holds_something_else_is_refused(tmp_path: Path, stored: object, words: str) -> None:
    metadata = written(tmp_path)
    torch.save(stored, tmp_path / "other.distcp")
    place(metadata, relative_path="other.distcp", offset=0, length=(tmp_path / "other.distcp").stat().st_size)
    write_metadata(tmp_path, metadata)
    with pytest.raises(CheckpointError, match=words) as caught:
        DistributedCheckpoint(tmp_path).read(NAME)
    assert "other.distcp" in str(caught.value)


def test_a_truncated_data_file_is_named(tmp_path: Path) -> None:
    weights = copy_of(NEMO_FIXTURE, tmp_path) / "weights"
    path = weights / "__0_1.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"__0_1\.distcp is truncated"):
        DistributedCheckpoint(weights)


def test_a_corrupt_data_file_is_named(tmp_path: Path) -> None:
    weights = copy_of(NEMO_FIXTURE, tmp_path) / "weights"
    path = weights / "__0_0.distcp"
    path.write_bytes(b"\0" * path.stat().st_size)
    checkpoint = DistributedCheckpoint(weights)

    def read_all() -> list[Tensor]:
        return [checkpoint.read(name) for name in checkpoint.names]

    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is damaged"):
        read_all()
