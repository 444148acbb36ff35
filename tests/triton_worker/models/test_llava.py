"""LLaVA-1.5: random models against transformers, as Hugging Face and NeMo 2.0 store them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from tests.triton_worker.device import DEVICE
from tests.triton_worker.models.llava import (
    IMAGE,
    TOWER,
    VOCABULARY,
    make_prompt,
    pixel_values,
    save_random,
    their_greedy,
)
from tests.triton_worker.models.reference import engine_greedy, our_greedy
from tests.triton_worker.models.test_qwen2_5_vl_weights import Tensors, assert_does_not_fit, in_memory, parameters
from tests.triton_worker.parallel.engine_harness import request, running, settings
from triton_worker.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from triton_worker.checkpoint.checkpoint import read_json_object
from triton_worker.checkpoint.unpickle import load_inert
from triton_worker.convert import main
from triton_worker.engine.engine import Engine, EngineError
from triton_worker.engine.limits import EngineLimits
from triton_worker.models.decoder.weights_nemo import WORD_EMBEDDINGS
from triton_worker.models.llava import config as llava_config
from triton_worker.models.llava import read_config
from triton_worker.models.llava.prompts import TOKENIZER
from triton_worker.models.registry import load_model
from triton_worker.parallel import Layout
from triton_worker.processing.tokenizer import Tokenizer

CPU = torch.device("cpu")
PROMPTS = [
    make_prompt(1, seed=1),
    make_prompt(0, seed=2, text_tokens=40),
    make_prompt(2, seed=3),
    make_prompt(3, seed=4),
]
VISION, CLIP = "module.vision_model.", "module.vision_model.vision_model."


@pytest.fixture(scope="module", autouse=True)
def tiny_tower() -> Any:
    """NeMo knows towers by name alone: give the random one a name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(llava_config.CLIP_TOWERS, "tiny-clip", TOWER)
        yield


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("llava") / "hf")


@pytest.fixture(scope="module")
def nemo(hf: Path) -> Path:
    main(["hf-to-nemo", str(hf), str(hf.parent / "nemo")])
    return hf.parent / "nemo"


@pytest.fixture(scope="module")
def theirs(hf: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(hf, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def expected(theirs: LlavaForConditionalGeneration) -> list[list[int]]:
    return [their_greedy(theirs, prompt, 12)[1] for prompt in PROMPTS]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: str(len(prompt.pictures)))
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


def test_a_context_without_room_for_a_picture_is_refused(hf: Path) -> None:
    model = load_model(open_checkpoint(hf), torch.float32, CPU)
    with pytest.raises(EngineError, match="A context of 17 tokens has no room for a picture, which takes 16"):
        Engine(model, IMAGE, 1024, EngineLimits(kv_cache_bytes=2**24, context_length=17, max_sequences=4))


def test_over_several_ranks(hf: Path) -> None:
    checkpoint = open_checkpoint(hf)
    tokenizer = Tokenizer(checkpoint.tokenizer_directory, TOKENIZER)
    expected = engine_greedy(load_model(checkpoint, torch.float32, CPU), PROMPTS, 12, tokenizer)
    with running(settings(hf, Layout(2, 2), image_token_id=IMAGE)) as engine:
        answers = engine.answers(*(request(str(i), prompt, max_tokens=12) for i, prompt in enumerate(PROMPTS)))
    assert [answers[str(i)] for i in range(len(PROMPTS))] == expected


@torch.inference_mode()
@pytest.mark.parametrize("layer", [-1, -2, 2])
def test_the_vision_side_equals_that_of_transformers(theirs: Any, hf: Path, layer: int) -> None:
    checkpoint = open_checkpoint(hf)
    checkpoint = replace(checkpoint, config={**checkpoint.config, "vision_feature_layer": layer})
    ours = load_model(checkpoint, torch.float32, CPU)
    pictures = PROMPTS[3].pictures
    features = theirs.model.get_image_features(pixel_values(pictures), vision_feature_layer=layer).pooler_output
    together = ours.encode_pictures(pictures)
    for picture, mine, other in zip(pictures, together, features, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.encode_pictures([picture])[0], mine, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(56, 28), (28, 28), (70, 70)])
def test_a_picture_that_was_not_prepared_is_refused(hf: Path, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a picture is uint8"):
        load_model(open_checkpoint(hf), torch.float32, CPU).encode_pictures([torch.zeros(*size, 3, dtype=torch.uint8)])


def as_transformers_4(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("vision_tower.")]:
        tensors[name.replace("vision_tower.", "vision_tower.vision_model.")] = tensors.pop(name)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(16)


def as_transformers_5(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        new = name.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        )
        new = new.replace("multi_modal", "model.multi_modal").replace("vision_tower.", "model.vision_tower.")
        tensors[new] = tensors.pop(name)


@pytest.mark.parametrize("change", [as_transformers_4, as_transformers_5])
def test_names_of_other_versions_of_transformers_load_alike(hf: Path, change: Any) -> None:
    expected, found = parameters(open_checkpoint(hf)), parameters(in_memory(hf, change))
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


def test_nemo_stores_what_its_own_importer_stores(nemo: Path) -> None:
    """The keys were read off a checkpoint that NeMo 2.7.3 wrote; the tower keeps the names of transformers."""
    language = "module.language_model."
    layers = f"{language}decoder.layers."
    expected = {
        f"{language}embedding.word_embeddings.weight": (VOCABULARY, 128),
        f"{layers}self_attention.linear_qkv.layer_norm_weight": (2, 128),
        f"{layers}self_attention.linear_qkv.weight": (2, 256, 128),
        f"{layers}self_attention.linear_proj.weight": (2, 128, 128),
        f"{layers}mlp.linear_fc1.layer_norm_weight": (2, 128),
        f"{layers}mlp.linear_fc1.weight": (2, 384, 128),
        f"{layers}mlp.linear_fc2.weight": (2, 128, 192),
        f"{language}decoder.final_layernorm.weight": (128,),
        f"{language}output_layer.weight": (VOCABULARY, 128),
        "module.vision_projection.0.weight": (128, 64),
        "module.vision_projection.0.bias": (128,),
        "module.vision_projection.2.weight": (128, 128),
        "module.vision_projection.2.bias": (128,),
    }
    weights = open_checkpoint(nemo).weights
    assert {name: weights.shape(name) for name in weights.names if not name.startswith(VISION)} == expected
    tower = {name.removeprefix(CLIP) for name in weights.names if name.startswith(VISION)}
    assert {"embeddings.class_embedding", "embeddings.patch_embedding.weight", "pre_layrnorm.bias"} < tower
    assert {"encoder.layers.3.self_attn.out_proj.bias", "post_layernorm.weight"} < tower
    assert len(tower) == 3 + 4 + 4 * 16
    stored = load_inert(nemo / "weights" / ".metadata").state["state_dict_metadata"]
    assert f"{layers}mlp.linear_fc1._extra_state/shard_1_2" in stored
    config = open_checkpoint(nemo).config
    assert config["_target_"] == "nemo.collections.vlm.neva.model.llava.LlavaModel"
    assert config["config"]["vision_transformer_config"]["pretrained_model_name_or_path"] == "openai/tiny-clip"
    assert (config["config"]["vision_feature_layer"], config["config"]["drop_vision_class_token"]) == (-2, True)


def plain_name(name: str) -> str:
    """Without what transformers 4 put before the names of the tower's tensors."""
    return name.replace("vision_tower.vision_model.", "vision_tower.")


@pytest.mark.parametrize("tied", [False, True])
def test_there_and_back_is_bit_exact(tmp_path: Path, tied: bool) -> None:
    source = save_random(tmp_path / "hf", tied)
    main(["hf-to-nemo", str(source), str(tmp_path / "nemo")])
    main(["nemo-to-hf", str(tmp_path / "nemo"), str(tmp_path / "back")])
    left, right = open_checkpoint(source).weights, open_checkpoint(tmp_path / "back").weights
    names = {plain_name(name): name for name in right.names}
    assert set(left.names) == set(names)
    for name in left.names:
        assert torch.equal(left.read(name), right.read(names[name])), name
    assert read_config(open_checkpoint(tmp_path / "back")) == read_config(open_checkpoint(source))
    config = read_json_object(tmp_path / "back" / "config.json")
    assert (config["image_token_index"], config["image_seq_length"]) == (IMAGE, 16)
    processor = LlavaProcessor.from_pretrained(tmp_path / "back")
    shown = processor(text="<image>", images=Image.new("RGB", (90, 60)), return_tensors="pt")
    assert (shown["input_ids"] == IMAGE).sum() == 16
    assert shown["pixel_values"].shape == (1, 3, 56, 56)
    models = [LlavaForConditionalGeneration.from_pretrained(p).eval() for p in (source, tmp_path / "back")]
    assert torch.equal(their_greedy(models[0], PROMPTS[0], 1)[0], their_greedy(models[1], PROMPTS[0], 1)[0])


def as_megatron_clip(tensors: dict[str, Tensor]) -> None:
    """As NeMo's CLIPViTConfig stores the tower: layers stacked, query, key and value of a head side by side."""
    rename = {
        "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "position_embeddings.weight",
        "pre_layrnorm.weight": "ln_pre.weight",
        "pre_layrnorm.bias": "ln_pre.bias",
    }
    in_layer = {
        "layer_norm1.weight": "self_attention.linear_qkv.layer_norm_weight",
        "layer_norm1.bias": "self_attention.linear_qkv.layer_norm_bias",
        "self_attn.out_proj.weight": "self_attention.linear_proj.weight",
        "self_attn.out_proj.bias": "self_attention.linear_proj.bias",
        "layer_norm2.weight": "mlp.linear_fc1.layer_norm_weight",
        "layer_norm2.bias": "mlp.linear_fc1.layer_norm_bias",
        "mlp.fc1.weight": "mlp.linear_fc1.weight",
        "mlp.fc1.bias": "mlp.linear_fc1.bias",
        "mlp.fc2.weight": "mlp.linear_fc2.weight",
        "mlp.fc2.bias": "mlp.linear_fc2.bias",
    }
    tower = {name.removeprefix(CLIP): tensors.pop(name) for name in list(tensors) if name.startswith(CLIP)}
    tensors[f"{VISION}class_token"] = tower["embeddings.class_embedding"][None, None]
    for theirs, ours in rename.items():
        tensors[f"{VISION}{ours}"] = tower[theirs]
    for theirs, ours in in_layer.items():
        stack = [tower[f"encoder.layers.{index}.{theirs}"] for index in range(4)]
        tensors[f"{VISION}decoder.layers.{ours}"] = torch.stack(stack)
    for kind in ("weight", "bias"):
        layers = []
        for index in range(4):
            parts = [tower[f"encoder.layers.{index}.self_attn.{x}_proj.{kind}"].unflatten(0, (4, 16)) for x in "qkv"]
            layers.append(torch.stack(parts, dim=1).flatten(0, 2))
        tensors[f"{VISION}decoder.layers.self_attention.linear_qkv.{kind}"] = torch.stack(layers)


def with_vision(checkpoint: Checkpoint, **vision: Any) -> Checkpoint:
    config = {**checkpoint.config["config"], "vision_transformer_config": vision}
    return replace(checkpoint, config={**checkpoint.config, "config": config})


MEGATRON_CLIP = {
    "_target_": "nemo.collections.vlm.vision.base.CLIPViTConfig", "num_layers": 4, "hidden_size": 64,
    "num_attention_heads": 4, "ffn_hidden_size": 96, "img_h": 56, "img_w": 56, "patch_dim": 14,
}  # fmt: skip


def test_a_tower_of_megatron_loads_alike(nemo: Path) -> None:
    expected = parameters(open_checkpoint(nemo))
    found = parameters(with_vision(in_memory(nemo, as_megatron_clip), **MEGATRON_CLIP))
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


@pytest.mark.parametrize(("size", "sizes"), [("7B", (32, 4096, 32, 32, 11008)), ("13B", (40, 5120, 40, 40, 13824))])
@pytest.mark.parametrize("whole", [True, False])
def test_a_preset_stands_for_its_sizes(nemo: Path, size: str, sizes: tuple[int, ...], whole: bool) -> None:
    language = {"_target_": f"nemo.collections.llm.gpt.model.llama.Llama2Config{size}"}
    model = {"_target_": f"nemo.collections.vlm.neva.model.llava.Llava15Config{size}"}
    checkpoint = replace(
        open_checkpoint(nemo),
        config={"config": model if whole else {"language_transformer_config": language}},
        weights=Tensors({WORD_EMBEDDINGS: torch.empty(1).expand(32064, sizes[1])}),
    )
    text, vision = (config := read_config(checkpoint)).text, config.vision
    found = (text.num_layers, text.hidden_size, text.num_heads, text.num_kv_heads, text.intermediate_size)
    assert found == sizes
    assert (text.vocab_size, text.norm_eps, text.rope_theta, text.qkv_bias) == (32064, 1e-5, 10000.0, False)
    assert (vision.num_layers, vision.layers_used, vision.image_size, vision.side) == (24, 23, 336, 24)


def test_what_the_hubs_config_leaves_out_is_what_transformers_fills_in(hf: Path) -> None:
    """config.json of llava-hf/llava-1.5-7b-hf, which names few sizes."""
    document = {
        "model_type": "llava",
        "image_token_index": 32000,
        "projector_hidden_act": "gelu",
        "text_config": {
            "model_type": "llama",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    ours, theirs = read_config(replace(open_checkpoint(hf), config=document)), LlavaConfig(**document)
    text, vision = theirs.text_config, theirs.vision_config
    assert (ours.text.num_layers, ours.text.hidden_size) == (text.num_hidden_layers, text.hidden_size)
    assert (ours.text.num_heads, ours.text.num_kv_heads) == (text.num_attention_heads, text.num_key_value_heads)
    assert (ours.text.intermediate_size, ours.text.vocab_size) == (text.intermediate_size, text.vocab_size)
    assert (ours.text.norm_eps, ours.text.rope_theta) == (text.rms_norm_eps, text.rope_parameters["rope_theta"])
    assert (ours.vision.num_layers, ours.vision.layers_used) == (vision.num_hidden_layers, 23)
    assert (ours.vision.num_heads, ours.vision.side) == (vision.num_attention_heads, 24)
    assert ours.vision.norm_eps == vision.layer_norm_eps


@pytest.mark.parametrize(
    ("layout", "name", "change", "words"),
    [
        ("hf", "multi_modal_projector.linear_1.bias", None, "lacks the tensor"),
        ("hf", "vision_tower.embeddings.position_embedding.weight", torch.zeros(16, 64), r"\[16, 64\].*\[17, 64\]"),
        ("hf", "vision_tower.encoder.layers.4.layer_norm1.bias", torch.zeros(64), "no place for"),
        ("hf", "language_model.model.layers.0.self_attn.q_proj.bias", torch.zeros(128), "no place for"),
        ("nemo", f"{CLIP}encoder.layers.1.mlp.fc1.bias", None, "lacks the tensor"),
        ("nemo", "module.vision_projection.0.weight", torch.zeros(128, 63), r"\[128, 63\].*\[128, 64\]"),
        ("nemo", "module.image_newline", torch.zeros(128), "no place for"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    hf: Path, nemo: Path, layout: str, name: str, change: Tensor | None, words: str
) -> None:
    assert_does_not_fit(hf if layout == "hf" else nemo, name, change, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["text_config"].update(model_type="mistral"), "model_type is 'mistral'; only 'llama'"),
        (lambda c: c["text_config"].update(rope_scaling={"rope_type": "linear"}), "only unscaled positions"),
        (lambda c: c["text_config"].update(rope_parameters={"rope_type": "llama3"}), "only 'default'"),
        (lambda c: c["text_config"].update(attention_bias=True), "without a bias"),
        (lambda c: c["vision_config"].update(model_type="siglip_vision_model"), "only 'clip_vision_model'"),
        (lambda c: c["vision_config"].update(image_size=57), "whole number of patches"),
        (lambda c: c.update(vision_feature_layer=[-2, -3]), "a whole number was expected"),
        (lambda c: c.update(vision_feature_layer=-6), "one of the tower's 4 layers"),
        (lambda c: c.update(vision_feature_select_strategy="full"), "only 'default'"),
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
    ("fields", "words"),
    [
        ({"language_transformer_config": {"_target_": "nemo.collections.llm.MistralConfig7B"}}, "not MistralConfig7B"),
        ({"vision_transformer_config": {"_target_": "a.SigLIPViT400M_14_384_Config"}}, "not SigLIPViT400M_14_384"),
        ({"vision_transformer_config": {**MEGATRON_CLIP, "vision_model_type": "siglip"}}, "only 'clip'"),
        (
            {"vision_transformer_config": {"pretrained_model_name_or_path": "openai/other"}},
            "clip-vit-large-patch14-336",
        ),
        ({"drop_vision_class_token": False}, "without the class token"),
    ],
)
def test_what_nemo_describes_and_cannot_be_served_is_named(nemo: Path, fields: dict[str, Any], words: str) -> None:
    checkpoint = open_checkpoint(nemo)
    config = {**checkpoint.config["config"], **fields}
    with pytest.raises(CheckpointError, match=words):
        read_config(replace(checkpoint, config={**checkpoint.config, "config": config}))


def test_a_tower_that_nemo_has_no_name_for_is_not_converted(hf: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(llava_config.CLIP_TOWERS, "tiny-clip")
        with pytest.raises(SystemExit, match="knows a CLIP tower by its name alone"):
            main(["hf-to-nemo", str(hf), str(tmp_path / "nemo")])
    assert not (tmp_path / "nemo").exists()
