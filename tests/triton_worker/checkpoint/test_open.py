from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.triton_worker.checkpoint.stored import HF_FIXTURE, NEMO_FIXTURE, copy_of
from triton_worker.checkpoint import CheckpointError, open_checkpoint
from triton_worker.checkpoint.context import read_io_json


def test_the_nemo_fixture_opens() -> None:
    checkpoint = open_checkpoint(NEMO_FIXTURE)
    assert (checkpoint.layout, checkpoint.family, checkpoint.seq_length) == ("nemo", "qwen2_5_vl", 4096)
    assert checkpoint.tokenizer_directory == NEMO_FIXTURE / "context" / "nemo_tokenizer"
    assert checkpoint.image_processor is None
    assert checkpoint.config["config"]["language_transformer_config"]["num_query_groups"] == 2
    assert "module.vision_model.conv1.weight" in checkpoint.weights.names


def test_the_huggingface_fixture_opens() -> None:
    checkpoint = open_checkpoint(str(HF_FIXTURE))
    assert (checkpoint.layout, checkpoint.family, checkpoint.seq_length) == ("huggingface", "qwen2_5_vl", 4096)
    assert checkpoint.tokenizer_directory == HF_FIXTURE
    assert checkpoint.image_processor is not None
    assert checkpoint.image_processor["max_pixels"] == 1003520
    assert checkpoint.weights.shape("lm_head.weight") == (448, 512)


def test_defaults_come_from_model_yaml_and_arguments_from_io_json(tmp_path: Path) -> None:
    path = copy_of(NEMO_FIXTURE, tmp_path)
    with_yaml = open_checkpoint(path).config["config"]["vision_transformer_config"]
    (path / "context" / "model.yaml").unlink()
    without = open_checkpoint(path).config["config"]["vision_transformer_config"]
    assert with_yaml["spatial_merge_size"] == 2
    assert "spatial_merge_size" not in without
    assert with_yaml["embed_dim"] == without["embed_dim"] == 64


def test_tags_in_model_yaml_are_data(tmp_path: Path) -> None:
    path, target = copy_of(NEMO_FIXTURE, tmp_path), tmp_path / "created"
    (path / "context" / "model.yaml").write_text(
        f"config:\n"
        f"  a: !!python/object/apply:os.system ['touch {target}']\n"
        f"  b: !!python/name:os.system ''\n"
        f"  c: !nemo {{x: 1}}\n"
    )
    config = open_checkpoint(path).config["config"]
    assert config["a"] == [f"touch {target}"]
    assert config["b"] == ""
    assert config["c"] == {"x": 1}
    assert not target.exists()


def test_a_tokenizer_of_ones_own_takes_the_place_of_the_stored_one(tmp_path: Path) -> None:
    assert open_checkpoint(NEMO_FIXTURE, HF_FIXTURE).tokenizer_directory == HF_FIXTURE
    for fixture in (NEMO_FIXTURE, HF_FIXTURE):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            open_checkpoint(fixture, tmp_path)


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def named_object(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The Config in io.json whose class is `name`."""
    for node in document["objects"].values():
        if node["type"]["name"] != "Config":
            continue
        metadata = dict(document["objects"][node["metadata"]["key"]]["items"])
        if metadata["Attr(name='fn_or_cls')"]["name"] == name:
            return node
    raise KeyError(name)


def set_argument(document: dict[str, Any], of: str, argument: str, value: object) -> None:
    node = named_object(document, of)
    key = f"Attr(name='{argument}')"
    node["items"] = [item for item in node["items"] if item[0] != key] + [[key, value]]


def rename_class(document: dict[str, Any], of: str, name: str) -> None:
    metadata = document["objects"][named_object(document, of)["metadata"]["key"]]["items"]
    dict(metadata)["Attr(name='fn_or_cls')"]["name"] = name


def io_json(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda path: edit_json(path / "context" / "io.json", change)


def hub_tokenizer(document: dict[str, Any]) -> None:
    """As the importer leaves it when it read from a hub: an artifact without files."""
    metadata = {
        "type": {"name": "BuildableTraverserMetadata"},
        "items": [["Attr(name='fn_or_cls')", {"type": "pyref", "module": "m", "name": "DirOrStringArtifact"}]],
    }
    document["objects"]["artifact_metadata"] = metadata
    document["objects"]["artifact"] = {
        "type": {"name": "Config"},
        "metadata": {"type": "ref", "key": "artifact_metadata"},
        "items": [["Attr(name='attr')", "Qwen/Qwen2.5-VL-3B-Instruct"], ["Attr(name='skip')", True]],
    }
    set_argument(document, "AutoTokenizer", "pretrained_model_name", {"type": "ref", "key": "artifact"})


def seq_length(value: object) -> Callable[[Path], None]:
    return io_json(lambda d: set_argument(d, "Qwen2Config", "seq_length", value))


def tokenizer(value: object) -> Callable[[Path], None]:
    return io_json(lambda d: set_argument(d, "AutoTokenizer", "pretrained_model_name", value))


def backend(path: Path) -> None:
    edit_json(path / "weights" / "metadata.json", lambda d: d.update(sharded_backend="zarr"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: (p / "weights" / "metadata.json").unlink(), r"metadata\.json is missing: the save was not finished"),
        (backend, r"metadata\.json names the format 'zarr'; only 'torch_dist'"),
        (lambda p: (p / "weights" / "metadata.json").write_text("{"), r"metadata\.json cannot be read as JSON"),
        (lambda p: (p / "weights" / "adapter_metadata.json").write_text("{}"), "PEFT adapter"),
        (lambda p: shutil.rmtree(p / "weights"), "weights is missing"),
        (lambda p: shutil.rmtree(p / "context"), "context is missing"),
        (lambda p: (p / "weights" / ".metadata").unlink(), r"\.metadata is missing"),
        (lambda p: (p / "weights" / "__0_1.distcp").unlink(), r"__0_1\.distcp is missing"),
        (lambda p: (p / "context" / "io.json").unlink(), r"io\.json is missing"),
        (lambda p: (p / "context" / "io.json").write_text("[]"), r"io\.json holds no JSON object"),
        (lambda p: (p / "context" / "io.json").write_text("{}"), r"io\.json is not a description"),
        (lambda p: (p / "context" / "io.json").write_bytes(b"\xff"), r"io\.json cannot be read"),
        (lambda p: (p / "context" / "model.yaml").write_text("a: [1"), r"model\.yaml cannot be read as YAML"),
        (lambda p: (p / "context" / "model.yaml").write_text("1"), r"model\.yaml holds no YAML mapping"),
        (io_json(lambda d: rename_class(d, "Qwen2VLModel", "LlavaModel")), r"io\.json .*LlavaModel"),
        (io_json(lambda d: set_argument(d, "Qwen2VLModel", "model_version", "qwen3-vl")), "qwen3-vl"),
        (
            io_json(lambda d: rename_class(d, "Qwen2VLModel", "Gemma3VLModel")),
            r"Gemma3VLModel .*LlavaModel.*MLlamaModel",
        ),
        (seq_length("long"), "seq_length is 'long'"),
        (seq_length(0), "seq_length is 0"),
        (io_json(hub_tokenizer), r"'Qwen/Qwen2\.5-VL-3B-Instruct'.*--tokenizer DIR"),
        (tokenizer("Qwen/X"), "'Qwen/X'.*--tokenizer DIR"),
        (tokenizer("../context/nemo_tokenizer"), "--tokenizer DIR"),
        (tokenizer(None), "--tokenizer DIR"),
        (lambda p: shutil.rmtree(p / "context" / "nemo_tokenizer"), "--tokenizer DIR"),
    ],
)
def test_a_nemo_checkpoint_that_cannot_be_served_says_why(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    path = copy_of(NEMO_FIXTURE, tmp_path)
    damage(path)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda path: edit_json(path / "config.json", lambda d: d.update(changes))


def cut_weights(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def store_integers(path: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(2, dtype=torch.int8)}, path / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (config(model_type="gemma3"), r"config\.json .*'gemma3'.*llava.*mllama.*qwen2_5_vl"),
        (config(model_type=None), r"config\.json .*None"),
        (config(quantization_config={"quant_method": "awq"}), r"config\.json .*quantized \(awq\)"),
        (config(max_position_embeddings="x"), r"config\.json: max_position_embeddings is 'x'"),
        (lambda p: (p / "config.json").write_text("nope"), r"config\.json cannot be read as JSON"),
        (lambda p: (p / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (cut_weights, r"model\.safetensors is damaged"),
        (store_integers, r"model\.safetensors stores 'lm_head\.weight' as I8"),
        (lambda p: (p / "model.safetensors.index.json").write_text("{}"), r"index\.json does not list"),
        (
            lambda p: (p / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'),
            r"index\.json does not list",
        ),
        (lambda p: (p / "tokenizer.json").unlink() or (p / "merges.txt").unlink(), "--tokenizer DIR"),
        (lambda p: (p / "preprocessor_config.json").write_text("x"), r"preprocessor_config\.json cannot be read"),
    ],
)
def test_a_huggingface_checkpoint_that_cannot_be_served_says_why(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    path = copy_of(HF_FIXTURE, tmp_path)
    damage(path)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


def test_weights_in_several_files_read_as_one(tmp_path: Path) -> None:
    path = copy_of(HF_FIXTURE, tmp_path)
    tensors = load_file(path / "model.safetensors")
    files = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in files if files[name] == file}, path / file)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    weights = open_checkpoint(path).weights
    assert set(weights.names) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(weights.read(name), tensor)
        assert torch.equal(weights.read(name, slice(1, 3)), tensor[1:3])
        assert weights.file_of(name) == path / files[name]


def write_adapter(path: Path) -> Path:
    (path / "adapter_config.json").write_text("{}")
    return path


def write_archive(path: Path) -> Path:
    (path / "model.nemo").write_bytes(b"")
    return path / "model.nemo"


def write_file(path: Path) -> Path:
    (path / "model.safetensors").write_bytes(b"")
    return path / "model.safetensors"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "nowhere", "does not exist"),
        (write_archive, r"NeMo 1\.0 archive"),
        (write_file, "is a file"),
        (write_adapter, "PEFT adapter"),
        (lambda p: p, "is not a checkpoint"),
        (lambda p: NEMO_FIXTURE / "weights", "give the directory above it"),
    ],
)
def test_a_path_that_is_no_checkpoint_says_what_it_is(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    path = make(tmp_path)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_graph_that_refers_to_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "io.json"
    node = {"type": {"name": "dict"}, "items": [["Key(key='a')", {"type": "ref", "key": "x"}]], "metadata": None}
    path.write_text(json.dumps({"root": {"type": "ref", "key": "x"}, "objects": {"x": node}}))
    with pytest.raises(CheckpointError, match=r"io\.json"):
        read_io_json(path)


def test_a_graph_of_shared_references_stays_small(tmp_path: Path) -> None:
    def pair(key: str) -> dict[str, Any]:
        reference = {"type": "ref", "key": key}
        return {"type": {"name": "list"}, "items": [["Index(index=0)", reference], ["Index(index=1)", reference]]}

    objects: dict[str, Any] = {f"l{depth}": pair(f"l{depth + 1}") for depth in range(60)}
    objects["l60"] = {"type": {"name": "list"}, "items": []}
    objects["root"] = {"type": {"name": "dict"}, "items": [["Key(key='a')", {"type": "ref", "key": "l0"}]]}
    path = tmp_path / "io.json"
    path.write_text(json.dumps({"root": {"type": "ref", "key": "root"}, "objects": objects}))
    assert list(read_io_json(path)) == ["a"]
