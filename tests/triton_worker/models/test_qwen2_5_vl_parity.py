"""Our Qwen2.5-VL against Hugging Face's, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.triton_worker.models.reference import (
    HF_FIXTURE,
    NEMO_FIXTURE,
    ListAttention,
    make_prompt,
    our_greedy,
    prefill,
    randomise,
    their_greedy,
)
from triton_worker.checkpoint import open_checkpoint
from triton_worker.models.interface import MultimodalModel
from triton_worker.models.registry import load_model

CPU = torch.device("cpu")
IMAGE_PAD = 412
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def theirs() -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(HF_FIXTURE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ours() -> MultimodalModel:
    return load_model(open_checkpoint(NEMO_FIXTURE), torch.float32, CPU)


# Sizes in units of 28 pixels; windows are 4 x 4 units.
@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [(2, 2)],
        [(4, 8)],
        [(5, 7)],
        [(1, 9)],
        [(13, 1)],
        [(6, 3), (4, 4)],
        [(3, 3), (9, 6), (1, 1)],
    ],
    ids=str,
)
def test_logits_and_greedy_tokens_equal_transformers(
    theirs: Qwen2_5_VLForConditionalGeneration, ours: MultimodalModel, sizes: list[tuple[int, int]]
) -> None:
    prompt = make_prompt(sizes, IMAGE_PAD, seed=len(sizes))
    our_logits, our_tokens = our_greedy(ours, prompt, NEW_TOKENS)
    their_logits, their_tokens = their_greedy(theirs, prompt, NEW_TOKENS)
    torch.testing.assert_close(our_logits, their_logits, atol=1e-4, rtol=0)
    assert our_tokens == their_tokens


def test_nemo_and_huggingface_fixtures_load_to_the_same_parameters(ours: MultimodalModel) -> None:
    from_huggingface = load_model(open_checkpoint(HF_FIXTURE), torch.float32, CPU)
    a, b = (dict(model.named_parameters()) for model in (ours, from_huggingface))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@torch.inference_mode()
def test_pictures_encoded_together_equal_pictures_encoded_alone(ours: MultimodalModel) -> None:
    pictures = make_prompt([(5, 6), (2, 3), (4, 4), (5, 6)], IMAGE_PAD).pictures
    together = ours.encode_pictures(pictures)
    assert [tuple(e.shape) for e in together] == [(30, 512), (6, 512), (16, 512), (30, 512)]
    for picture, embeddings in zip(pictures, together, strict=True):
        torch.testing.assert_close(embeddings, ours.encode_pictures([picture])[0], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_prefill_in_chunks_equals_prefill_at_once(ours: MultimodalModel) -> None:
    prompt = make_prompt([(3, 5)], IMAGE_PAD)
    at_once, _ = prefill(ours, prompt, ListAttention(ours.num_kv_heads))
    token_ids = torch.tensor(prompt.token_ids)
    embeddings = ours.embed_tokens(token_ids)
    embeddings[token_ids == IMAGE_PAD] = ours.encode_pictures(prompt.pictures)[0]
    positions, _ = ours.prompt_positions(prompt.token_ids, prompt.grids, IMAGE_PAD)
    attention = ListAttention(ours.num_kv_heads)
    parts = [
        ours.logits(ours.forward(embeddings[part], positions[:, part], attention))
        for part in (slice(0, 4), slice(4, 17), slice(17, None))
    ]
    torch.testing.assert_close(torch.cat(parts), at_once, atol=1e-4, rtol=0)


def test_no_pictures_give_no_embeddings(ours: MultimodalModel) -> None:
    assert ours.encode_pictures([]) == []


@pytest.mark.parametrize(
    "picture",
    [
        torch.zeros(28, 28, 3),
        torch.zeros(30, 28, 3, dtype=torch.uint8),
        torch.zeros(28, 28, 4, dtype=torch.uint8),
        torch.zeros(0, 28, 3, dtype=torch.uint8),
    ],
)
def test_a_picture_that_was_not_prepared_is_refused(ours: MultimodalModel, picture: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="a picture"):
        ours.encode_pictures([picture])


def random_checkpoint(directory: Path, text: dict[str, object], vision: dict[str, object], tied: bool) -> None:
    """A random model saved by transformers, with weights large enough for the logits to differ."""
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={"vocab_size": 420, "max_position_embeddings": 512, "rms_norm_eps": 1e-6} | text,
        vision_config={"in_channels": 3, "patch_size": 14} | vision,
        image_token_id=IMAGE_PAD, video_token_id=413, vision_start_token_id=409, vision_end_token_id=410,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    randomise(model)
    model.save_pretrained(directory)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "sections", "depth", "full", "window", "vision_heads", "tied"),
    [
        (2, 1, (4, 6, 6), 4, (0, 2), 112, 2, True),
        (6, 3, (2, 3, 3), 3, (), 112, 4, False),
        (4, 4, (8, 4, 4), 3, (1, 2), 56, 3, False),
        (8, 2, (1, 1, 2), 2, (0, 1), 84, 1, True),
        (5, 1, (16, 24, 24), 2, (1,), 112, 2, False),
    ],
)
def test_random_configurations_equal_transformers(
    tmp_path: Path,
    heads: int,
    kv_heads: int,
    sections: tuple[int, ...],
    depth: int,
    full: tuple[int, ...],
    window: int,
    vision_heads: int,
    tied: bool,
) -> None:
    hidden = heads * 2 * sum(sections)
    text = {
        "hidden_size": hidden, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": list(sections)},
    }  # fmt: skip
    vision = {
        "depth": depth, "hidden_size": 16 * vision_heads, "num_heads": vision_heads, "intermediate_size": 40,
        "out_hidden_size": hidden, "fullatt_block_indexes": list(full), "window_size": window,
    }  # fmt: skip
    random_checkpoint(tmp_path, text, vision, tied)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours = load_model(open_checkpoint(tmp_path, HF_FIXTURE), torch.float32, CPU)
    for sizes in ([(7, 5), (4, 6)], [(1, 3)], []):
        prompt = make_prompt(sizes, IMAGE_PAD)
        our_logits, our_tokens = our_greedy(ours, prompt, 6)
        their_logits, their_tokens = their_greedy(theirs, prompt, 6)
        torch.testing.assert_close(our_logits, their_logits, atol=1e-4, rtol=0)
        assert our_tokens == their_tokens


def test_every_parameter_has_the_dtype_asked_for() -> None:
    model = load_model(open_checkpoint(NEMO_FIXTURE), torch.bfloat16, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    prompt = make_prompt([(3, 3)], IMAGE_PAD)
    logits, _ = our_greedy(model, prompt, 1)
    assert logits.dtype == torch.bfloat16
    assert logits.shape == (len(prompt.token_ids), model.vocab_size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.inference_mode()
def test_the_gpu_computes_what_the_cpu_does(ours: MultimodalModel) -> None:
    device = torch.device("cuda")
    on_gpu = load_model(open_checkpoint(NEMO_FIXTURE), torch.float32, device)
    prompt = make_prompt([(5, 7), (2, 2)], IMAGE_PAD)
    expected, _ = prefill(ours, prompt, ListAttention(ours.num_kv_heads))
    logits, _ = prefill(on_gpu, prompt, ListAttention(on_gpu.num_kv_heads))
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-3, rtol=0)
