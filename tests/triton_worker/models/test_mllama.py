"""Llama 3.2 Vision: random models against transformers, as Hugging Face and NeMo 2.0 store them."""

from __future__ import annotations

import itertools
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from tests.triton_worker.device import DEVICE
from tests.triton_worker.models.mllama import (
    IMAGE,
    INTERMEDIATE_LAYERS,
    SIDE,
    TILE_TOKENS,
    VOCABULARY,
    make_prompt,
    reference_model,
    save_random,
    their_greedy,
    their_inputs,
)
from tests.triton_worker.models.reference import Prompt, engine_greedy
from tests.triton_worker.models.test_qwen2_5_vl_weights import Tensors, assert_does_not_fit, in_memory, parameters
from tests.triton_worker.parallel.engine_harness import RunningEngine, request, running, settings
from triton_worker.checkpoint import CheckpointError, open_checkpoint
from triton_worker.checkpoint.checkpoint import read_json_object
from triton_worker.checkpoint.unpickle import load_inert
from triton_worker.convert import main
from triton_worker.engine.kv_cache import blocks_for
from triton_worker.engine.messages import Generate, Picture
from triton_worker.engine.picture_encoder import PictureEncoder
from triton_worker.engine.runner import ModelRunner
from triton_worker.engine.scheduler import Chunk
from triton_worker.models.decoder.weights_nemo import WORD_EMBEDDINGS
from triton_worker.models.interface import MultimodalModel
from triton_worker.models.mllama import config as mllama_config
from triton_worker.models.mllama import read_config
from triton_worker.models.registry import load_model
from triton_worker.parallel import Layout, Ranks

CPU = torch.device("cpu")
PROMPTS = [
    make_prompt((1, 1), 5, seed=1),
    make_prompt(40, seed=2),
    make_prompt(5, (2, 2), 5, seed=3),
    make_prompt(5, (1, 2), (2, 1), 7, seed=4),
    make_prompt(3, (1, 3), 20, (1, 1), 17, seed=5),
    make_prompt(30, (4, 1), seed=6),
]
LANGUAGE, TOWER = "module.language_model.", "module.vision_model.vision_encoder."
XATTN = f"{LANGUAGE}decoder.xattn_layers."


@pytest.fixture(scope="module", autouse=True)
def tiny_tower() -> Iterator[None]:
    """NeMo's code states some of the tower's sizes, and no checkpoint does: here they are the random one's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mllama_config.NEMO_TOWER, "hidden_size", 32)
        patch.setitem(mllama_config.NEMO_TOWER, "intermediate_layers", tuple(INTERMEDIATE_LAYERS))
        yield


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("mllama") / "hf")


@pytest.fixture(scope="module")
def nemo(hf: Path) -> Path:
    main(["hf-to-nemo", str(hf), str(hf.parent / "nemo")])
    return hf.parent / "nemo"


@pytest.fixture(scope="module")
def theirs(hf: Path) -> MllamaForConditionalGeneration:
    return reference_model(hf)


@pytest.fixture(scope="module")
def expected(theirs: MllamaForConditionalGeneration) -> list[list[int]]:
    return [their_greedy(theirs, prompt, 12)[1] for prompt in PROMPTS]


def last_logits(model: MultimodalModel, prompt: Prompt, chunk_tokens: int) -> Tensor:
    """Logits behind the prompt, computed so many tokens at a time."""
    runner = ModelRunner(model, IMAGE, 64, PictureEncoder(model, 0, 1), 1)
    pictures = tuple(Picture.of(np.asarray(picture)) for picture in prompt.pictures)
    sequence = runner.new_sequence(Generate("r", tuple(prompt.token_ids), pictures, None, 1, 0, frozenset()))  # type: ignore[arg-type]
    free = iter(np.random.default_rng(0).permutation(64).tolist())
    count = len(prompt.token_ids)
    sequence.blocks = array("i", [next(free) for _ in range(blocks_for(count))])
    for context in sequence.contexts:
        context.blocks = array("i", [next(free) for _ in range(context.block_count)])
    for start in range(0, count, chunk_tokens):
        stop = min(count, start + chunk_tokens)
        chunk = Chunk(sequence, start, stop, reaches_end=stop == count)
        logits = runner.forward([chunk])
        for context in chunk.new_contexts:
            context.is_computed = True
    return logits[0]


@pytest.mark.parametrize("chunk_tokens", [1, 6, 100])
@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: str(len(prompt.pictures)))
def test_logits_equal_those_of_transformers(theirs: Any, hf: Path, prompt: Prompt, chunk_tokens: int) -> None:
    ours = load_model(open_checkpoint(hf), torch.float32, CPU)
    logits, _ = their_greedy(theirs, prompt, 1)
    torch.testing.assert_close(last_logits(ours, prompt, chunk_tokens), logits[-1], atol=1e-4, rtol=0)


def test_what_is_shown_is_seen(theirs: Any, hf: Path) -> None:
    """Or nothing here would tell pictures apart."""
    ours = load_model(open_checkpoint(hf), torch.float32, CPU)
    prompt = PROMPTS[3]
    other = replace(prompt, pictures=[prompt.pictures[0], 255 - prompt.pictures[1]])
    assert not torch.allclose(last_logits(ours, prompt, 100), last_logits(ours, other, 100), atol=0.01)


@pytest.mark.parametrize("source", ["hf", "nemo"])
def test_the_engine_answers_a_crowd_as_transformers_answers_alone(
    hf: Path, nemo: Path, source: str, expected: list[list[int]]
) -> None:
    model = load_model(open_checkpoint(hf if source == "hf" else nemo), torch.float32, DEVICE)
    assert engine_greedy(model, PROMPTS, 12) == expected
    assert engine_greedy(model, PROMPTS[:1], 12) == expected[:1]


@pytest.mark.parametrize("layout", [Layout(2, 1), Layout(2, 2)], ids=["2x1", "2x2"])
def test_over_several_ranks(hf: Path, expected: list[list[int]], layout: Layout) -> None:
    with running(settings(hf, layout, image_token_id=IMAGE)) as engine:
        answers = engine.answers(*(request(str(i), prompt, max_tokens=12) for i, prompt in enumerate(PROMPTS)))
    assert [answers[str(i)] for i in range(len(PROMPTS))] == expected


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_ranks_read_the_same_parts_of_both_layouts(tmp_path: Path, kv_heads: int) -> None:
    source = save_random(tmp_path / "hf", kv_heads)
    main(["hf-to-nemo", str(source), str(tmp_path / "nemo")])
    for stage, rank in itertools.product(range(2), range(2)):
        models = [
            load_model(open_checkpoint(path), torch.float32, CPU, ranks=Ranks(rank, 2, stage, 2))
            for path in (source, tmp_path / "nemo")
        ]
        left, right = (dict(model.named_parameters()) for model in models)  # type: ignore[attr-defined]
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
        assert len(left["decoder.layers.3.q_proj.weight"]) == 64


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(3, 1), "--tensor_parallel_size 3 does not divide the model's 4 attention heads"),
        (Layout(1, 10), "--pipeline_parallel_size 10 leaves a stage with more cross-attention layers"),
    ],
)
def test_sizes_that_do_not_fit_the_model_are_refused(hf: Path, layout: Layout, words: str) -> None:
    engine = RunningEngine(settings(hf, layout, image_token_id=IMAGE))
    engine.wait_exit()
    assert engine.failure is not None
    assert words in engine.failure


@torch.inference_mode()
@pytest.mark.parametrize("prompt", [p for p in PROMPTS if p.pictures], ids=lambda prompt: str(prompt.grids))
def test_the_vision_side_equals_that_of_transformers(theirs: Any, hf: Path, prompt: Prompt) -> None:
    ours = load_model(open_checkpoint(hf), torch.float32, CPU)
    inputs = {name: value for name, value in their_inputs(prompt).items() if name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}  # fmt: skip  # noqa: E501
    features = theirs.model.multi_modal_projector(theirs.model.vision_model(**inputs).last_hidden_state)[0]
    for mine, other, (rows, columns) in zip(ours.encode_pictures(prompt.pictures), features, prompt.grids, strict=True):
        assert len(mine) == ours.picture_tokens(rows * SIDE, columns * SIDE) == rows * columns * TILE_TOKENS
        torch.testing.assert_close(mine, other[: rows * columns].flatten(0, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(56, 57), (28, 28), (56, 280), (112, 168)])
def test_a_picture_that_was_not_prepared_is_refused(hf: Path, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a picture is uint8, of up to 4 tiles of 56 x 56 pixels"):
        load_model(open_checkpoint(hf), torch.float32, CPU).encode_pictures([torch.zeros(*size, 3, dtype=torch.uint8)])


def as_transformers_4(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        new = name.replace("language_model.model.", "model.language_model.")
        new = new.replace("language_model.lm_head", "lm_head").replace("multi_modal", "model.multi_modal")
        tensors[f"model.{name}" if name.startswith("vision_model.") else new] = tensors.pop(name)


def test_names_of_other_versions_of_transformers_load_alike(hf: Path) -> None:
    expected, found = parameters(open_checkpoint(hf)), parameters(in_memory(hf, as_transformers_4))
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


def test_nemo_stores_the_layers_of_cross_attention_apart(nemo: Path) -> None:
    """Names and shapes as in nemo.collections.vlm.mllama.model, 2.7.3."""
    weights = open_checkpoint(nemo).weights
    expected = {
        f"{LANGUAGE}embedding.word_embeddings.weight": (VOCABULARY, 128),
        f"{LANGUAGE}learnable_embedding.weight": (8, 128),
        f"{LANGUAGE}decoder.layers.self_attention.linear_qkv.weight": (8, 256, 128),
        f"{LANGUAGE}decoder.layers.mlp.linear_fc1.weight": (8, 384, 128),
        f"{XATTN}3.cross_attention.linear_q.weight": (128, 128),
        f"{XATTN}3.cross_attention.linear_q.layer_norm_weight": (128,),
        f"{XATTN}3.cross_attention.linear_kv.weight": (128, 128),
        f"{XATTN}3.cross_attention.q_layernorm.weight": (32,),
        f"{XATTN}3.cross_attention.k_layernorm.weight": (32,),
        f"{XATTN}3.cross_attention.linear_proj.weight": (128, 128),
        f"{XATTN}3.mlp.linear_fc1.layer_norm_weight": (128,),
        f"{XATTN}7.mlp.linear_fc2.weight": (128, 192),
        f"{XATTN}7.gate_attn": (1,),
        f"{TOWER}conv1._linear.weight": (32, 588),
        f"{TOWER}transformer.layers.self_attention.linear_qkv.weight": (4, 96, 32),
        f"{TOWER}global_transformer.layers.gate_ffn": (2, 1),
        f"{TOWER}gated_tile_positional_embedding.weight": (9, 4 * TILE_TOKENS * 32),
        "module.vision_model.vision_projection.encoder.weight": (128, 96),
    }
    assert {name: weights.shape(name) for name in expected} == expected
    stored = load_inert(nemo / "weights" / ".metadata").state["state_dict_metadata"]
    assert {
        f"{LANGUAGE}decoder.layers.mlp.linear_fc1._extra_state/shard_1_8",
        f"{XATTN}7.cross_attention.q_layernorm._extra_state/shard_0_1",
        f"{TOWER}conv1._linear._extra_state/shard_0_1",
        f"{TOWER}ln_post._extra_state/shard_0_1",
        f"{TOWER}global_transformer.layers.pre_mlp_layernorm._extra_state/shard_1_2",
        "module.vision_model.vision_projection.encoder._extra_state/shard_0_1",
    } < set(stored)
    config = open_checkpoint(nemo).config
    assert config["_target_"] == "nemo.collections.vlm.mllama.model.base.MLlamaModel"
    assert config["config"]["language_model_config"]["num_cross_attention_layers"] == 2


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_there_and_back_is_bit_exact(tmp_path: Path, kv_heads: int) -> None:
    source = save_random(tmp_path / "hf", kv_heads)
    main(["hf-to-nemo", str(source), str(tmp_path / "nemo")])
    main(["nemo-to-hf", str(tmp_path / "nemo"), str(tmp_path / "back")])
    left, right = open_checkpoint(source).weights, open_checkpoint(tmp_path / "back").weights
    assert set(left.names) == set(right.names)
    for name in left.names:
        assert torch.equal(left.read(name), right.read(name)), name
    assert read_config(open_checkpoint(tmp_path / "back")) == read_config(open_checkpoint(source))
    assert read_json_object(tmp_path / "back" / "config.json")["image_token_index"] == IMAGE
    processor = MllamaImageProcessorPil.from_pretrained(tmp_path / "back")
    shown = processor([[Image.new("RGB", (90, 60))]], return_tensors="pt")
    assert shown["pixel_values"].shape == (1, 1, 4, 3, 56, 56)
    models = [reference_model(path) for path in (source, tmp_path / "back")]
    assert torch.equal(their_greedy(models[0], PROMPTS[2], 1)[0], their_greedy(models[1], PROMPTS[2], 1)[0])


@pytest.mark.parametrize(
    ("size", "sizes", "tile"),
    [
        ("11B", (40, 4096, 32, 8, 14336), 448),
        ("11BInstruct", (40, 4096, 32, 8, 14336), 560),
        ("90B", (100, 8192, 64, 8, 28672), 560),
        ("90BInstruct", (100, 8192, 64, 8, 28672), 560),
    ],
)
def test_a_preset_stands_for_its_sizes(
    nemo: Path, monkeypatch: pytest.MonkeyPatch, size: str, sizes: tuple[int, ...], tile: int
) -> None:
    monkeypatch.setitem(mllama_config.NEMO_TOWER, "intermediate_layers", (3, 7, 15, 23, 30))
    checkpoint = replace(
        open_checkpoint(nemo),
        config={"config": {"_target_": f"nemo.collections.vlm.mllama.model.mllama.MLlamaConfig{size}"}},
        weights=Tensors({WORD_EMBEDDINGS: torch.empty(1).expand(128256, sizes[1])}),
    )
    text, vision = (config := read_config(checkpoint)).text, config.vision
    found = (text.num_layers, text.hidden_size, text.num_heads, text.num_kv_heads, text.intermediate_size)
    assert found == sizes
    assert text.cross_attention_layers == tuple(range(3, sizes[0], 5))  # as published
    assert (text.vocab_size, text.norm_eps, text.rope_theta) == (128256, 1e-5, 500000.0)
    assert (vision.image_size, vision.tile_tokens, vision.output_size) == (tile, (tile // 14) ** 2 + 1, 7680)


def test_what_config_json_leaves_out_is_what_transformers_fills_in(hf: Path) -> None:
    document: dict[str, Any] = {"model_type": "mllama", "text_config": {}, "vision_config": {}}
    ours, theirs = read_config(replace(open_checkpoint(hf), config=document)), MllamaConfig(**document)
    text, vision = theirs.text_config, theirs.vision_config
    assert (ours.text.num_layers, ours.text.hidden_size) == (text.num_hidden_layers, text.hidden_size)
    assert (ours.text.num_heads, ours.text.num_kv_heads) == (text.num_attention_heads, text.num_key_value_heads)
    assert (ours.text.intermediate_size, ours.text.vocab_size) == (text.intermediate_size, text.vocab_size)
    assert list(ours.text.cross_attention_layers) == text.cross_attention_layers
    assert (ours.text.norm_eps, ours.text.rope_theta) == (text.rms_norm_eps, text.rope_parameters["rope_theta"])
    assert (ours.vision.num_layers, ours.vision.num_global_layers) == (vision.num_hidden_layers, 8)
    assert (ours.vision.image_size, ours.vision.max_tiles) == (vision.image_size, vision.max_num_tiles)
    assert list(ours.vision.intermediate_layers) == vision.intermediate_layers_indices
    assert ours.vision.output_size == vision.vision_output_dim


@pytest.mark.parametrize(
    ("layout", "name", "change", "words"),
    [
        ("hf", "multi_modal_projector.bias", None, "lacks the tensor"),
        ("hf", "language_model.model.embed_tokens.weight", torch.zeros(448, 128), r"\[448, 128\].*\[456, 128\]"),
        ("hf", "language_model.model.layers.3.cross_attn_attn_gate", None, "lacks the tensor"),
        ("hf", "language_model.model.layers.3.self_attn.q_proj.weight", torch.zeros(128, 128), "no place for"),
        ("hf", "vision_model.transformer.layers.4.mlp.fc1.bias", torch.zeros(128), "no place for"),
        ("nemo", f"{XATTN}7.gate_ffn", None, "lacks the tensor"),
        ("nemo", f"{XATTN}4.gate_ffn", torch.zeros(1), "no place for"),
        ("nemo", f"{TOWER}conv1._linear.weight", torch.zeros(32, 587), r"\[32, 587\].*\[32, 588\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    hf: Path, nemo: Path, layout: str, name: str, change: Tensor | None, words: str
) -> None:
    assert_does_not_fit(hf if layout == "hf" else nemo, name, change, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["text_config"].update(hidden_act="gelu"), "only 'silu'"),
        (lambda c: c["text_config"].update(tie_word_embeddings=True), "an output matrix of its own"),
        (lambda c: c["text_config"].update(cross_attention_layers=[8, 3]), "some of the 10 layers, in order"),
        (lambda c: c["text_config"].update(cross_attention_layers=[3, 10]), "some of the 10 layers, in order"),
        (lambda c: c["text_config"].update(cross_attention_layers=[]), "cross-attention layers, at most half"),
        (lambda c: c["text_config"].update(cross_attention_layers=[*range(6)]), "cross-attention layers, at most half"),
        (lambda c: c["text_config"]["rope_parameters"].update(rope_type="yarn"), "'default' or 'llama3'"),
        (lambda c: c["text_config"]["rope_parameters"].update(factor=None), "factor is missing"),
        (lambda c: c["text_config"]["rope_parameters"].update(high_freq_factor=1.0), "low_freq_factor <"),
        (lambda c: c["vision_config"].update(image_size=57), "whole number of patches"),
        (lambda c: c["vision_config"].update(image_size=[56, 56]), "a positive whole number"),
        (lambda c: c["vision_config"].update(supported_aspect_ratios=[[1, 1]]), "all arrangements of up to 4 tiles"),
        (lambda c: c["vision_config"].update(vision_output_dim=64), "96 follows from the other sizes"),
        (lambda c: c["vision_config"].update(intermediate_layers_indices=[1, 4]), "some of the tower's 4"),
        (lambda c: c["vision_config"].update(attention_heads=3), "divides evenly"),
        (lambda c: c.update(vision_config=7), "a group of fields"),
    ],
)
def test_what_hugging_face_describes_and_cannot_be_served_is_named(
    hf: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    config = json.loads((hf / "config.json").read_text())
    change(config)
    with pytest.raises(CheckpointError, match=words):
        read_config(replace(open_checkpoint(hf), config=config))


@pytest.mark.parametrize(
    ("part", "fields", "words"),
    [
        ("language_model_config", {"num_cross_attention_layers": 0}, "num_cross_attention_layers is 0"),
        ("language_model_config", {"share_embeddings_and_output_weights": True}, "an output matrix of its own"),
        ("vision_model_config", {"vision_max_num_chunks": 5}, "max_num_tiles, which is 4"),
        ("vision_model_config", {"vision_chunk_size": -1}, "vision_chunk_size is -1"),
        ("vision_model_config", {"supported_aspect_ratios": [[1, 1]]}, "all arrangements"),
    ],
)
def test_what_nemo_describes_and_cannot_be_served_is_named(
    nemo: Path, part: str, fields: dict[str, Any], words: str
) -> None:
    checkpoint = open_checkpoint(nemo)
    config = {**checkpoint.config["config"]}
    config[part] = {**config[part], **fields}
    with pytest.raises(CheckpointError, match=words):
        read_config(replace(checkpoint, config={**checkpoint.config, "config": config}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cross_attention_layers": [2, 8]}, r"cross_attention_layers is \(2, 8\); NeMo 2.0 .* always has \(3, 8\)"),
        ({}, r"the vision tower's hidden_size is 32; NeMo 2.0 does not store it and always has 1280"),
    ],
)
def test_what_nemo_has_no_place_for_is_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
) -> None:
    if not settings:
        monkeypatch.setitem(mllama_config.NEMO_TOWER, "hidden_size", 1280)
    source = save_random(tmp_path / "hf", **settings)
    with pytest.raises(SystemExit, match=words):
        main(["hf-to-nemo", str(source), str(tmp_path / "nemo")])
    assert not (tmp_path / "nemo").exists()
