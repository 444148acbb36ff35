"""Qwen2-VL: random models against transformers, as Hugging Face and NeMo 2.0 store them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from tests.triton_worker.device import DEVICE
from tests.triton_worker.models.reference import (
    HF_FIXTURE,
    engine_greedy,
    make_prompt,
    our_greedy,
    randomise,
    their_greedy,
)
from tests.triton_worker.models.test_qwen2_5_vl_weights import (
    Tensors,
    assert_does_not_fit,
    in_memory,
    number_layers,
    parameters,
    sequential_projector,
)
from tests.triton_worker.parallel.engine_harness import request, running, settings
from triton_worker.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from triton_worker.checkpoint.checkpoint import read_json_object
from triton_worker.checkpoint.tokenizer_files import copy_tokenizer_files
from triton_worker.checkpoint.unpickle import load_inert
from triton_worker.convert import main
from triton_worker.models.decoder.weights_nemo import WORD_EMBEDDINGS
from triton_worker.models.qwen2_vl import read_config
from triton_worker.models.qwen_vl.prompts import TOKENIZER
from triton_worker.models.registry import load_model
from triton_worker.parallel import Layout
from triton_worker.processing.tokenizer import Tokenizer

CPU = torch.device("cpu")
IMAGE_PAD = 412
LAYERS, VISION_LAYERS, HIDDEN, WIDTH, INNER = 2, 3, 512, 64, 256
PROMPTS = [
    make_prompt([(4, 6)], IMAGE_PAD, seed=1),
    make_prompt([], IMAGE_PAD, seed=2, text_tokens=40),
    make_prompt([(3, 5), (5, 3)], IMAGE_PAD, seed=3),
    make_prompt([(2, 2), (7, 3), (1, 1)], IMAGE_PAD, seed=5),
]


def save_random(directory: Path, tied: bool = False) -> Path:
    """A random model as transformers saves it, with the fixture's tokenizer."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 448, "hidden_size": HIDDEN, "intermediate_size": 192, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "bos_token_id": 401, "eos_token_id": 400,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {"depth": VISION_LAYERS, "embed_dim": WIDTH, "hidden_size": HIDDEN, "num_heads": 4, "mlp_ratio": 4}
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=tied,
        image_token_id=IMAGE_PAD, video_token_id=413, vision_start_token_id=409, vision_end_token_id=410,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config)
    randomise(model)
    model.save_pretrained(directory)
    copy_tokenizer_files(open_checkpoint(HF_FIXTURE), directory)
    return directory


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("qwen2_vl") / "hf")


@pytest.fixture(scope="module")
def nemo(hf: Path) -> Path:
    main(["hf-to-nemo", str(hf), str(hf.parent / "nemo")])
    return hf.parent / "nemo"


@pytest.fixture(scope="module")
def theirs(hf: Path) -> Qwen2VLForConditionalGeneration:
    return Qwen2VLForConditionalGeneration.from_pretrained(hf, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def expected(theirs: Qwen2VLForConditionalGeneration) -> list[list[int]]:
    return [their_greedy(theirs, prompt, 12)[1] for prompt in PROMPTS]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: str(prompt.grids))
def test_logits_equal_those_of_transformers(theirs: Any, hf: Path, prompt: Any) -> None:
    ours = load_model(open_checkpoint(hf), torch.float32, CPU)
    our_logits, our_tokens = our_greedy(ours, prompt, 12)
    their_logits, their_tokens = their_greedy(theirs, prompt, 12)
    torch.testing.assert_close(our_logits, their_logits, atol=1e-4, rtol=0)
    assert our_tokens == their_tokens


def test_the_engine_answers_a_crowd_as_transformers_answers_alone(nemo: Path, expected: list[list[int]]) -> None:
    model = load_model(open_checkpoint(nemo), torch.float32, DEVICE)
    assert engine_greedy(model, PROMPTS, 12) == expected
    assert engine_greedy(model, PROMPTS[:1], 12) == expected[:1]


def test_over_several_ranks(nemo: Path) -> None:
    checkpoint = open_checkpoint(nemo)
    tokenizer = Tokenizer(checkpoint.tokenizer_directory, TOKENIZER)
    expected = engine_greedy(load_model(checkpoint, torch.float32, CPU), PROMPTS, 12, tokenizer)
    with running(settings(nemo, Layout(2, 2))) as engine:
        answers = engine.answers(*(request(str(i), prompt, max_tokens=12) for i, prompt in enumerate(PROMPTS)))
    assert [answers[str(i)] for i in range(len(PROMPTS))] == expected


@torch.inference_mode()
def test_the_vision_tower_equals_that_of_transformers(theirs: Any, hf: Path) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    ours = load_model(open_checkpoint(hf), torch.float32, CPU)
    pictures = make_prompt([(5, 7), (2, 2), (1, 9)], IMAGE_PAD).pictures
    processed = Qwen2VLImageProcessorPil(do_resize=False)(
        [p.permute(2, 0, 1).numpy() for p in pictures], return_tensors="pt"
    )
    features = theirs.model.get_image_features(processed["pixel_values"], processed["image_grid_thw"]).pooler_output
    for mine, other in zip(ours.encode_pictures(pictures), features, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=0)


def test_nemo_stores_what_its_own_importer_stores(nemo: Path) -> None:
    """The keys and shapes were read off checkpoints that NeMo 2.7.3 wrote."""
    v = "module.vision_model."
    qkv, fc1 = "self_attention.linear_qkv", "mlp.linear_fc1"
    shapes = {
        f"{v}conv1.weight": (WIDTH, 3, 2, 14, 14),
        f"{v}decoder.layers.{qkv}.layer_norm_weight": (VISION_LAYERS, WIDTH),
        f"{v}decoder.layers.{qkv}.layer_norm_bias": (VISION_LAYERS, WIDTH),
        f"{v}decoder.layers.{qkv}.weight": (VISION_LAYERS, 3 * WIDTH, WIDTH),
        f"{v}decoder.layers.{qkv}.bias": (VISION_LAYERS, 3 * WIDTH),
        f"{v}decoder.layers.self_attention.linear_proj.weight": (VISION_LAYERS, WIDTH, WIDTH),
        f"{v}decoder.layers.self_attention.linear_proj.bias": (VISION_LAYERS, WIDTH),
        f"{v}decoder.layers.{fc1}.layer_norm_weight": (VISION_LAYERS, WIDTH),
        f"{v}decoder.layers.{fc1}.layer_norm_bias": (VISION_LAYERS, WIDTH),
        f"{v}decoder.layers.{fc1}.weight": (VISION_LAYERS, INNER, WIDTH),
        f"{v}decoder.layers.{fc1}.bias": (VISION_LAYERS, INNER),
        f"{v}decoder.layers.mlp.linear_fc2.weight": (VISION_LAYERS, WIDTH, INNER),
        f"{v}decoder.layers.mlp.linear_fc2.bias": (VISION_LAYERS, WIDTH),
        f"{v}decoder.final_layernorm.weight": (WIDTH,),
        f"{v}decoder.final_layernorm.bias": (WIDTH,),
        "module.vision_projection.encoder.linear_fc1.weight": (4 * WIDTH, 4 * WIDTH),
        "module.vision_projection.encoder.linear_fc1.bias": (4 * WIDTH,),
        "module.vision_projection.encoder.linear_fc2.weight": (HIDDEN, 4 * WIDTH),
        "module.vision_projection.encoder.linear_fc2.bias": (HIDDEN,),
    }
    weights = open_checkpoint(nemo).weights
    assert {n: weights.shape(n) for n in weights.names if not n.startswith("module.language_model.")} == shapes
    stored = load_inert(nemo / "weights" / ".metadata").state["state_dict_metadata"]
    assert f"{v}decoder.layers.{fc1}._extra_state/shard_0_{VISION_LAYERS}" in stored
    checkpoint = open_checkpoint(nemo)
    assert checkpoint.config["model_version"] == "qwen2-vl"
    tower = checkpoint.config["config"]["vision_transformer_config"]
    assert tower["_target_"].endswith(".Qwen2VLVisionConfig")
    assert "fullatt_block_indexes" not in tower


@pytest.mark.parametrize("tied", [False, True])
def test_there_and_back_is_bit_exact(tmp_path: Path, tied: bool) -> None:
    source = save_random(tmp_path / "hf", tied)
    main(["hf-to-nemo", str(source), str(tmp_path / "nemo")])
    main(["nemo-to-hf", str(tmp_path / "nemo"), str(tmp_path / "back")])
    left, right = (open_checkpoint(path).weights for path in (source, tmp_path / "back"))
    assert set(left.names) == set(right.names)
    for name in left.names:
        assert torch.equal(left.read(name), right.read(name)), name
    config = read_json_object(tmp_path / "back" / "config.json")
    assert config["model_type"] == "qwen2_vl"
    assert config["image_token_id"] == IMAGE_PAD
    assert read_config(open_checkpoint(tmp_path / "back")) == read_config(open_checkpoint(source))
    again = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
    prompt = PROMPTS[0]
    first = Qwen2VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    assert their_greedy(again, prompt, 4)[1] == their_greedy(first, prompt, 4)[1]


def number_ungated_layers(tensors: dict[str, Tensor]) -> None:
    """As `number_layers`, but that the tower's MLP is not gated."""
    tower = {n: tensors.pop(n) for n in list(tensors) if n.startswith("module.vision_model.decoder.layers.mlp.")}
    number_layers(tensors)
    for name, stack in tower.items():
        for index, tensor in enumerate(stack):
            tensors[name.replace("layers.", f"layers.{index}.")] = tensor


@pytest.mark.parametrize("change", [number_ungated_layers, sequential_projector])
def test_other_layouts_that_nemo_writes_load_alike(nemo: Path, change: Any) -> None:
    expected, found = parameters(open_checkpoint(nemo)), parameters(in_memory(nemo, change))
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


@pytest.mark.parametrize(
    ("size", "expected", "tied"),
    [
        ("2B", (28, 1536, 12, 2, 8960, 151936, 1e-6), True),
        ("7B", (28, 3584, 28, 4, 18944, 152064, 1e-6), False),
        ("72B", (80, 8192, 64, 8, 29568, 152064, 1e-5), False),
    ],
)
def test_a_preset_stands_for_its_sizes(nemo: Path, size: str, expected: tuple[Any, ...], tied: bool) -> None:
    checkpoint = replace(
        open_checkpoint(nemo),
        config={"config": {"_target_": f"nemo.collections.vlm.qwen2vl.model.qwen2vl.Qwen2VLConfig{size}"}},
        weights=Tensors({WORD_EMBEDDINGS: torch.empty(1).expand(expected[5], expected[1])}),
    )
    text, vision = (config := read_config(checkpoint)).text, config.vision
    found = (text.num_layers, text.hidden_size, text.num_heads, text.num_kv_heads, text.intermediate_size)
    assert (*found, text.vocab_size, text.norm_eps) == expected
    assert text.tied_embeddings is tied
    assert (vision.num_layers, vision.hidden_size, vision.num_heads, vision.intermediate_size) == (32, 1280, 16, 5120)


@pytest.mark.parametrize(
    ("layout", "name", "change", "words"),
    [
        ("hf", "visual.blocks.0.norm1.bias", None, "lacks the tensor"),
        ("hf", "visual.blocks.2.mlp.fc1.weight", torch.zeros(255, WIDTH), r"\[255, 64\].*\[256, 64\]"),
        ("hf", "visual.blocks.0.mlp.gate_proj.weight", torch.zeros(1), "no place for"),
        ("nemo", "module.vision_model.decoder.final_layernorm.bias", None, "lacks the tensor"),
        (
            "nemo",
            "module.vision_model.decoder.layers.mlp.linear_fc1.bias",
            torch.zeros(3, 255),
            r"\[3, 255\].*\[3, 256\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    hf: Path, nemo: Path, layout: str, name: str, change: Tensor | None, words: str
) -> None:
    assert_does_not_fit(hf if layout == "hf" else nemo, name, change, words)


def edited(hf: Path, change: Callable[[dict[str, Any]], None]) -> Checkpoint:
    checkpoint = open_checkpoint(hf)
    config = json.loads((hf / "config.json").read_text())
    change(config)
    return replace(checkpoint, config=config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["vision_config"].update(hidden_act="gelu"), "hidden_act is 'gelu'; only 'quick_gelu'"),
        (lambda c: c["vision_config"].update(num_heads=5), "divides evenly among its attention heads"),
        (lambda c: c["vision_config"].update(embed_dim="wide"), "embed_dim is 'wide'"),
        (lambda c: c["vision_config"].update(patch_size=16), "picture unit of 28"),
    ],
)
def test_sizes_that_make_no_sense_are_named(hf: Path, change: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_config(edited(hf, change))
