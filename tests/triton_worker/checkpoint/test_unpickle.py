"""A pickle is a program. Nothing of the one in a checkpoint may run."""

from __future__ import annotations

import builtins
import collections
import io
import os
import pickle
import pickletools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.triton_worker.checkpoint.stored import NEMO_FIXTURE
from triton_worker.checkpoint import CheckpointError
from triton_worker.checkpoint.metadata import read_metadata
from triton_worker.checkpoint.unpickle import Record, load_inert


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def calls(target: Path) -> dict[str, Call]:
    create = f"touch {target}"
    return {
        "os.system": Call(os.system, create),
        "subprocess": Call(subprocess.check_call, create.split()),
        "eval": Call(builtins.eval, f"open({str(target)!r}, 'w')"),
        "open": Call(open, str(target), "w"),
        "torch.save": Call(torch.save, 1, str(target)),
        "torch.load": Call(torch.load, str(target)),
        "torch.tensor": Call(torch.tensor, [1]),
        "within": [Call(torch.Size, (1,)), Call(os.system, create)],  # type: ignore[dict-item]
    }


@pytest.mark.parametrize("name", list(calls(Path())))
def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, name: str) -> None:
    target, path = tmp_path / "created", tmp_path / ".metadata"
    path.write_bytes(pickle.dumps(calls(target)[name]))
    with pytest.raises(CheckpointError, match="nothing in it was run") as caught:
        read_metadata(path)
    assert str(path) in str(caught.value)
    assert not target.exists()


def test_protocol_0_and_dotted_names_are_no_way_around(tmp_path: Path) -> None:
    target, path = tmp_path / "created", tmp_path / ".metadata"
    for content in (
        f"cos\nsystem\n(S'touch {target}'\ntR.".encode(),
        f"(S'touch {target}'\nios\nsystem\n.".encode(),
        b"\x80\x04\x8c\x05torch\x8c\x0bserialization.os.system\x93.".replace(b"\x0b", bytes([23])),
        b"\x80\x04\x8c\x05torch\x8c\x0dSize.__class__\x93.",
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_metadata(path)
    assert not target.exists()


def test_known_globals_are_inert_whatever_they_are_called_with(tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    calls_of_known = [
        Call(getattr, torch.Size, "__class__"),
        Call(torch.serialization._get_layout, "torch.strided"),
        Call(torch.Size, (1, 2)),
    ]
    path.write_bytes(pickle.dumps(calls_of_known))
    attribute, layout, size = load_inert(path)
    assert all(isinstance(record, Record) for record in (attribute, layout, size))
    assert size.arguments == ((1, 2),)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_metadata(path)


def test_state_cannot_be_set_on_a_class(tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    for target in (b"ctorch\nSize\n", b"ccollections\nOrderedDict\n", b"ctorch\nfloat32\n"):
        content = b"\x80\x02" + target + b"}X\x07\x00\x00\x00__new__K\x01sb."
        pickletools.dis(content, out=io.StringIO())  # A well-formed pickle, so that it is not refused for its form.
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged"):
            load_inert(path)
    assert Record("kept").arguments == ("kept",)


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", b"\x80\x04K\x01.", b"\x80\x04]."])
def test_bytes_that_are_no_metadata_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_metadata(path)


def test_a_truncated_metadata_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes((NEMO_FIXTURE / "weights" / ".metadata").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_metadata(path)


def test_a_missing_metadata_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\.metadata is missing"):
        read_metadata(tmp_path / ".metadata")


def test_ordered_dicts_keep_their_items(tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps(collections.OrderedDict(a=1)))
    assert load_inert(path) == {"a": 1}
