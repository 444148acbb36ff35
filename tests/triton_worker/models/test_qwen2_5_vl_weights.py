"""How Qwen2.5-VL's configuration and tensors are taken from checkpoints, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.triton_worker.models.reference import HF_FIXTURE, NEMO_FIXTURE
from triton_worker.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.decoder.weights_nemo import WORD_EMBEDDINGS
from triton_worker.models.qwen2_5_vl.config import config_from_huggingface, config_from_nemo
from triton_worker.models.registry import UnknownModelFamily, load_model

CPU = torch.device("cpu")
LAYERS = "module.language_model.decoder.layers."


class Tensors:
    """A TensorReader over a dict."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @property
    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def read(self, name: str, *slices: slice) -> Tensor:
        return self.tensors[name][slices]

    def file_of(self, name: str) -> Path:
        return Path("the-file")


def in_memory(path: Path, change: Callable[[dict[str, Tensor]], None] = lambda tensors: None) -> Checkpoint:
    checkpoint = open_checkpoint(path)
    tensors = {name: checkpoint.weights.read(name) for name in checkpoint.weights.names}
    change(tensors)
    return replace(checkpoint, weights=Tensors(tensors))


def assert_does_not_fit(path: Path, name: str, change: Tensor | None, words: str) -> None:
    """The checkpoint with that tensor in place of its own, or without any, is refused in words that name it."""

    def apply(tensors: dict[str, Tensor]) -> None:
        tensors.pop(name, None)
        if change is not None:
            tensors[name] = change

    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(in_memory(path, apply), torch.float32, CPU)
    assert name in str(caught.value)


def parameters(checkpoint: Checkpoint) -> dict[str, Tensor]:
    model = load_model(checkpoint, torch.float32, CPU)
    assert isinstance(model, torch.nn.Module)
    return dict(model.named_parameters())


def assert_loads_like_the_fixture(checkpoint: Checkpoint) -> None:
    expected, found = parameters(open_checkpoint(NEMO_FIXTURE)), parameters(checkpoint)
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


def number_layers(tensors: dict[str, Tensor]) -> None:
    """As megatron-core saves with singleton_local_shards: a key per layer, gate and up apart."""
    for name in [name for name in tensors if ".layers." in name]:
        prefix, rest = name.split(".layers.")
        for index, tensor in enumerate(tensors.pop(name)):
            numbered = f"{prefix}.layers.{index}.{rest}"
            if rest in ("mlp.linear_fc1.weight", "mlp.linear_fc1.bias"):
                tensors[f"{numbered}_w"], tensors[f"{numbered}_v"] = tensor.chunk(2)
            else:
                tensors[numbered] = tensor


def sequential_projector(tensors: dict[str, Tensor]) -> None:
    for ours, theirs in (("0", "encoder.linear_fc1"), ("2", "encoder.linear_fc2")):
        for kind in ("weight", "bias"):
            tensor = tensors.pop(f"module.vision_projection.{theirs}.{kind}")
            tensors[f"module.vision_projection.{ours}.{kind}"] = tensor


@pytest.mark.parametrize("change", [number_layers, sequential_projector])
def test_other_layouts_that_nemo_writes_load_alike(change: Callable[[dict[str, Tensor]], None]) -> None:
    assert_loads_like_the_fixture(in_memory(NEMO_FIXTURE, change))


def test_names_of_transformers_5_load_alike() -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            if name.startswith("model."):
                tensors["model.language_model." + name.removeprefix("model.")] = tensors.pop(name)
            elif name.startswith("visual."):
                tensors[f"model.{name}"] = tensors.pop(name)

    assert_loads_like_the_fixture(in_memory(HF_FIXTURE, rename))


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int]] = []
    load_model(open_checkpoint(NEMO_FIXTURE), torch.bfloat16, CPU, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {seen[-1][0]}


@pytest.mark.parametrize(
    ("path", "name", "change", "words"),
    [
        (NEMO_FIXTURE, LAYERS + "mlp.linear_fc2.weight", None, "lacks the tensor"),
        (NEMO_FIXTURE, LAYERS + "mlp.linear_fc2.weight", torch.zeros(2, 512, 190), r"\[2, 512, 190\].*\[2, 512, 192\]"),
        (NEMO_FIXTURE, LAYERS + "mlp.linear_fc2.weight", torch.zeros(3, 512, 192), r"\[3, 512, 192\].*\[2, 512, 192\]"),
        (NEMO_FIXTURE, "module.vision_model.class_token", torch.zeros(1), "no place for"),
        (NEMO_FIXTURE, "module.language_model.output_layer.weight", torch.zeros(450, 512), r"\[450, 512\]"),
        (HF_FIXTURE, "lm_head.weight", None, "lacks the tensor"),
        (HF_FIXTURE, "visual.blocks.0.attn.qkv.bias", torch.zeros(190), r"\[190\].*\[192\]"),
        (HF_FIXTURE, "model.layers.2.mlp.up_proj.weight", torch.zeros(192, 512), "no place for"),
    ],
)
def test_tensors_that_do_not_fit_are_named(path: Path, name: str, change: Tensor | None, words: str) -> None:
    def apply(tensors: dict[str, Tensor]) -> None:
        tensors.pop(name, None)
        if change is not None:
            tensors[name] = change

    with pytest.raises(CheckpointError, match=words) as caught:
        parameters(in_memory(path, apply))
    assert name in str(caught.value)
    assert "the-file" in str(caught.value)


def tied(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, config={**checkpoint.config, "tie_word_embeddings": True})


def test_tied_embeddings_need_no_output_matrix_and_ignore_a_stored_one() -> None:
    without = tied(in_memory(HF_FIXTURE, lambda tensors: tensors.__delitem__("lm_head.weight")))
    for checkpoint in (without, tied(in_memory(HF_FIXTURE))):
        model = load_model(checkpoint, torch.float32, CPU)
        hidden = torch.randn(2, model.hidden_size)
        assert torch.equal(model.logits(hidden), hidden @ model.embed_tokens(torch.arange(model.vocab_size)).T)


# From the table in NeMo's qwen2.py and qwen2vl.py: layers, hidden, heads, groups, feed-forward, rows, tied, vision's.
@pytest.mark.parametrize(
    ("size", "expected", "vision_intermediate"),
    [
        ("3B", (36, 2048, 16, 2, 128, 11008, 151936, 1e-6, True), 3420),
        ("7B", (28, 3584, 28, 4, 128, 18944, 152064, 1e-6, False), 3420),
        ("32B", (64, 5120, 40, 8, 128, 27648, 152064, 1e-5, False), 3456),
        ("72B", (80, 8192, 64, 8, 128, 29568, 152064, 1e-5, False), 3456),
    ],
)
def test_a_preset_stands_for_its_sizes(size: str, expected: tuple[Any, ...], vision_intermediate: int) -> None:
    rows, hidden = expected[6], expected[1]
    checkpoint = replace(
        open_checkpoint(NEMO_FIXTURE),
        config={"config": {"_target_": f"nemo.collections.vlm.qwen2vl.model.qwen2vl.Qwen25VLConfig{size}"}},
        weights=Tensors({WORD_EMBEDDINGS: torch.empty(1).expand(rows, hidden)}),
    )
    config = config_from_nemo(checkpoint)
    layers, hidden, heads, groups, head_dim, inner, rows, eps, is_tied = expected
    assert config.text == DecoderConfig(
        layers, hidden, heads, groups, head_dim, inner, rows, eps, 1e6, (16, 24, 24), is_tied, qkv_bias=True
    )
    assert (config.vision.num_layers, config.vision.hidden_size, config.vision.num_heads) == (32, 1280, 16)
    assert config.vision.intermediate_size == vision_intermediate
    assert config.vision.full_attention_layers == (7, 15, 23, 31)


def nemo_with(section: str, **fields: Any) -> Checkpoint:
    checkpoint = open_checkpoint(NEMO_FIXTURE)
    config = dict(checkpoint.config["config"])
    config[section] = {**config[section], **fields}
    return replace(checkpoint, config={**checkpoint.config, "config": config})


@pytest.mark.parametrize(
    ("section", "fields", "words"),
    [
        ("language_transformer_config", {"kv_channels": 64}, "kv_channels is 64; .* size 128"),
        ("language_transformer_config", {"num_layers": "two"}, "num_layers is 'two'"),
        ("language_transformer_config", {"num_layers": None}, "num_layers is missing"),
        ("language_transformer_config", {"num_query_groups": 3}, "divide evenly"),
        ("language_transformer_config", {"rotary_base": -1.0}, "rotary_base is -1.0"),
        ("language_transformer_config", {"share_embeddings_and_output_weights": 1}, "true or false"),
        ("vision_transformer_config", {"fullatt_block_indexes": [7]}, "fullatt_block_indexes"),
        ("vision_transformer_config", {"embed_dim": 66}, "vision"),
        ("vision_transformer_config", {"patch_dim": 16}, "picture unit"),
    ],
)
def test_nemo_sizes_that_make_no_sense_are_named(section: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        config_from_nemo(nemo_with(section, **fields))
    assert str(NEMO_FIXTURE / "context" / "io.json") in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling.type is 'yarn'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24]}}, "mrope_section"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"vision_config": {"hidden_size": 64, "in_channels": 1}}, "in_channels is 1"),
        ({"vision_config": [1]}, "a group of fields"),
    ],
)
def test_huggingface_sizes_that_make_no_sense_are_named(fields: dict[str, Any], words: str) -> None:
    checkpoint = open_checkpoint(HF_FIXTURE)
    with pytest.raises(CheckpointError, match=words) as caught:
        config_from_huggingface(replace(checkpoint, config={**checkpoint.config, **fields}))
    assert str(HF_FIXTURE / "config.json") in str(caught.value)


def test_an_unknown_family_is_refused_with_those_that_exist() -> None:
    checkpoint = replace(open_checkpoint(HF_FIXTURE), family="gemma3")
    with pytest.raises(UnknownModelFamily, match=r"'gemma3'.*mllama.*qwen2_5_vl"):
        load_model(checkpoint, torch.float32, CPU)
