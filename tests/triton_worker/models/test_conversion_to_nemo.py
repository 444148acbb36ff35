"""Qwen2.5-VL as NeMo 2.0 stores it: NeMo's own importer made NEMO_FIXTURE from the weights of HF_FIXTURE."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from transformers import AutoTokenizer

from tests.triton_worker.checkpoint.stored import HF_FIXTURE, NEMO_FIXTURE, copy_of
from triton_worker.checkpoint import CheckpointError, open_checkpoint
from triton_worker.checkpoint.metadata import read_metadata
from triton_worker.checkpoint.unpickle import load_inert
from triton_worker.models.qwen2_5_vl.conversion import write_nemo


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hugging Face fixture, converted by us."""
    directory = tmp_path_factory.mktemp("written") / "checkpoint"
    write_nemo(open_checkpoint(HF_FIXTURE), directory)
    return directory


def test_tensors_and_chunks_are_those_that_nemo_wrote(written: Path) -> None:
    ours, theirs = open_checkpoint(written).weights, open_checkpoint(NEMO_FIXTURE).weights
    assert set(ours.names) == set(theirs.names)
    for name in theirs.names:
        assert ours.dtype(name) == theirs.dtype(name)
        assert torch.equal(ours.read(name), theirs.read(name)), name
    our_table, their_table = (read_metadata(path / "weights" / ".metadata") for path in (written, NEMO_FIXTURE))
    for name in theirs.names:
        boxes = [
            sorted((chunk.offsets, chunk.shape) for chunk in table[name].chunks) for table in (our_table, their_table)
        ]
        assert boxes[0] == boxes[1], name


def test_every_entry_that_nemo_asks_for_is_there(written: Path) -> None:
    keys = [
        set(load_inert(path / "weights" / ".metadata").state["state_dict_metadata"]) for path in (written, NEMO_FIXTURE)
    ]
    assert keys[0] == keys[1]


def test_the_context_is_the_one_that_nemo_wrote(written: Path) -> None:
    ours, theirs = (json.loads((path / "context" / "io.json").read_text()) for path in (written, NEMO_FIXTURE))
    assert ours == theirs
    assert list(ours["objects"]) == list(theirs["objects"])


def test_model_yaml_says_nothing_that_nemo_does_not(written: Path) -> None:
    ours, theirs = (yaml.safe_load((path / "context" / "model.yaml").read_text()) for path in (written, NEMO_FIXTURE))
    _assert_within(ours, theirs, "model")


def test_torch_itself_reads_it(written: Path) -> None:
    metadata: Metadata = pickle.loads((written / "weights" / ".metadata").read_bytes())
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(tensors, checkpoint_id=written / "weights", no_dist=True)
    reference = open_checkpoint(NEMO_FIXTURE).weights
    assert tensors
    for name, tensor in tensors.items():
        assert torch.equal(tensor, reference.read(name)), name


def test_no_path_of_this_machine_is_stored(written: Path) -> None:
    for path in written.rglob("*"):
        if path.is_file():
            assert str(written.parent).encode() not in path.read_bytes(), path
            assert str(HF_FIXTURE.parent).encode() not in path.read_bytes(), path


def test_the_tokenizer_comes_along(written: Path) -> None:
    directory = open_checkpoint(written).tokenizer_directory
    assert directory == written / "context" / "nemo_tokenizer"
    assert (directory / "tokenizer.json").read_bytes() == (HF_FIXTURE / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("named", [None, "TokenizersBackend", "Qwen2TokenizerFast"])
@pytest.mark.parametrize("complete", [True, False], ids=["tokenizer.json", "vocab.json and merges.txt"])
def test_the_tokenizers_class_is_one_that_nemo_knows(tmp_path: Path, named: str | None, complete: bool) -> None:
    """NeMo's transformers 4 has no config.json there to tell it from, and does not know transformers 5's own class."""
    source = copy_of(HF_FIXTURE, tmp_path / "source")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    del settings["tokenizer_class"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings | ({"tokenizer_class": named} if named else {})))
    if not complete:
        (source / "tokenizer.json").unlink()
    write_nemo(open_checkpoint(source), tmp_path / "written")
    directory = open_checkpoint(tmp_path / "written").tokenizer_directory
    written = json.loads((directory / "tokenizer_config.json").read_text())
    own = "PreTrainedTokenizerFast" if complete else "Qwen2Tokenizer"
    assert written.pop("tokenizer_class") == (named if named == "Qwen2TokenizerFast" else own)
    assert written == settings
    text = "Was ist das?<|im_end|>"
    assert AutoTokenizer.from_pretrained(directory)(text) == AutoTokenizer.from_pretrained(HF_FIXTURE)(text)


def test_a_tokenizer_without_settings_gets_those_that_nemo_needs(tmp_path: Path) -> None:
    source = copy_of(HF_FIXTURE, tmp_path / "source")
    (source / "tokenizer_config.json").unlink()
    write_nemo(open_checkpoint(source), tmp_path / "written")
    directory = open_checkpoint(tmp_path / "written").tokenizer_directory
    written = json.loads((directory / "tokenizer_config.json").read_text())
    assert written == {"tokenizer_class": "PreTrainedTokenizerFast"}


def test_a_tied_model_has_no_output_layer(tmp_path: Path) -> None:
    source = copy_of(HF_FIXTURE, tmp_path / "source")
    _edit(source / "config.json", {"tie_word_embeddings": True})
    write_nemo(open_checkpoint(source), tmp_path / "written")
    written = open_checkpoint(tmp_path / "written")
    assert "module.language_model.output_layer.weight" not in written.weights.names
    assert written.config["config"]["language_transformer_config"]["share_embeddings_and_output_weights"] is True


def test_what_nemo_fixes_cannot_be_otherwise(tmp_path: Path) -> None:
    source = copy_of(HF_FIXTURE, tmp_path / "source")
    vision = json.loads((source / "config.json").read_text())["vision_config"]
    _edit(source / "config.json", {"vision_config": {**vision, "window_size": 56}})
    with pytest.raises(CheckpointError, match=r"window_size is 56; NeMo .* always has 112"):
        write_nemo(open_checkpoint(source), tmp_path / "written")
    assert not (tmp_path / "written").exists()


def test_a_missing_tensor_leaves_an_unfinished_checkpoint(tmp_path: Path) -> None:
    source = copy_of(HF_FIXTURE, tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    removed = next(name for name in weights if name.endswith("blocks.2.mlp.up_proj.bias"))
    save_file({name: tensor for name, tensor in weights.items() if name != removed}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=removed):
        write_nemo(open_checkpoint(source), tmp_path / "written")
    with pytest.raises(CheckpointError, match="not finished"):
        open_checkpoint(tmp_path / "written")


def test_a_tensor_too_many_is_refused(tmp_path: Path) -> None:
    source = copy_of(HF_FIXTURE, tmp_path / "source")
    weights = {**load_file(source / "model.safetensors"), "model.layers.9.extra": torch.zeros(1)}
    save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.layers\.9\.extra"):
        write_nemo(open_checkpoint(source), tmp_path / "written")


def _assert_within(ours: Any, theirs: Any, path: str) -> None:
    if isinstance(ours, Mapping):
        for key, value in ours.items():
            assert key in theirs, f"{path}.{key}"
            _assert_within(value, theirs[key], f"{path}.{key}")
    else:
        assert ours == theirs, path


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
