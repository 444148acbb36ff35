"""LLaVA's prompts and pictures, beside what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from protocol.messages import ChatMessage, PicturePart, SamplingParameters, Submit, TextPart
from tests.triton_worker.models.llava import IMAGE, save_random, save_tokenizer
from tests.triton_worker.processing.pictures_asked import png, processor_of
from triton_worker.checkpoint import CheckpointError, open_checkpoint
from triton_worker.models.llava.prompts import TOKENIZER, VICUNA
from triton_worker.models.registry import prompts_of
from triton_worker.processing.chat_template import ChatTemplate
from triton_worker.processing.detokenizer import Detokenizer
from triton_worker.processing.pictures import CentreCrop, PictureBoundsError, PictureError
from triton_worker.processing.tokenizer import Tokenizer

MARK = "\ue000"
# The template of llava-hf/llava-1.5-7b-hf, which marks answers for training.
HUB_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("llava"))


def ask(*content: TextPart | PicturePart) -> tuple[ChatMessage, ...]:
    return (ChatMessage(role="user", content=content),)


TEXTS = [
    "USER: <image>\nWhat is on the picture? ASSISTANT:",
    "<s> the hat",
    "two  spaces, and ünïcödé 你好",
    "<image><image> the end",
    " the",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("scheme", ["normalizer", "first"])
def test_token_ids_equal_those_of_transformers(tmp_path: Path, text: str, scheme: str) -> None:
    save_tokenizer(tmp_path)
    if scheme == "first":
        backend = BackendTokenizer.from_file(str(tmp_path / "tokenizer.json"))
        backend.normalizer = normalizers.Sequence([])
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
        backend.save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    expected = theirs(text)["input_ids"]
    if text.startswith("<s>"):
        expected = expected[1:]  # one beginning is enough
    assert Tokenizer(tmp_path, TOKENIZER).encode_template(text, MARK) == expected


def test_answers_end_with_llamas_end_of_sequence(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    assert Tokenizer(tmp_path, TOKENIZER).end_token_ids == {2}


@pytest.mark.parametrize("text", ["the hat on the mat", "ünïcödé 你好 at the end", "é"])
def test_text_comes_piece_by_piece_as_it_comes_at_once(tmp_path: Path, text: str) -> None:
    save_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path, TOKENIZER)
    detokenizer = Detokenizer(tokenizer.decode)
    token_ids = tokenizer.encode_template(text, MARK)[1:]
    assert "".join(map(detokenizer.push, token_ids)) + detokenizer.flush() == text


def test_a_tokenizer_without_the_picture_token_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] != "<image>"]
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="no <image> token, which stands for a picture"):
        Tokenizer(tmp_path, TOKENIZER)


def test_a_tokenizer_json_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing, which this family"):
        Tokenizer(tmp_path, TOKENIZER)


def test_the_hubs_template_renders_as_in_transformers(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    messages = (
        *ask(PicturePart(index=0), TextPart(text="What is it?")),
        ChatMessage(role="assistant", content=(TextPart(text="A hat."),)),
        *ask(TextPart(text="Where?")),
    )
    plain: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A hat."}]},
        {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
    ]
    expected = theirs.apply_chat_template(plain, chat_template=HUB_TEMPLATE, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(HUB_TEMPLATE).render(messages, [])[0] == expected


@pytest.mark.parametrize(
    ("system", "beginning"),
    [
        (None, "A chat between a curious user and an artificial intelligence assistant. "
         "The assistant gives helpful, detailed, and polite answers to the user's questions."),
        ("Be brief.", "Be brief."),
    ],
)  # fmt: skip
def test_without_a_template_it_is_vicunas_conversation(tmp_path: Path, system: str | None, beginning: str) -> None:
    save_tokenizer(tmp_path)
    messages = (
        *ask(PicturePart(index=0), TextPart(text="What is it?")),
        ChatMessage(role="assistant", content=(TextPart(text="A hat."),)),
        *ask(TextPart(text="Where?")),
    )
    if system is not None:
        messages = (ChatMessage(role="system", content=(TextPart(text=system),)), *messages)
    text, _ = ChatTemplate.of(tmp_path, VICUNA).render(messages, [])
    assert text == f"{beginning} USER: <image>\nWhat is it? ASSISTANT: A hat.</s> USER: Where? ASSISTANT:"


SIZES = [(56, 56), (40, 90), (333, 57), (57, 56), (700, 701), (1, 1), (5, 900)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("side", [56, 336])
def test_pictures_equal_those_of_transformers(height: int, width: int, side: int) -> None:
    picture = Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_rescale=False, do_normalize=False
    )
    expected = theirs(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    preparation = CentreCrop(side, 14)
    prepared = preparation.prepare(picture)
    assert prepared.dtype == np.uint8
    assert np.array_equal(prepared, expected)
    assert preparation.tokens(height, width) == (side // 14) ** 2


def test_a_picture_too_long_is_refused_before_it_is_made_large() -> None:
    with pytest.raises(PictureError, match="more than 200 times"):
        CentreCrop(336, 14).tokens(1, 300)
    with pytest.raises(PictureError, match="more than 200 times"):
        CentreCrop(336, 14).prepare(Image.new("RGB", (300, 1)))


def test_a_request_becomes_token_ids_and_pixels(checkpoint: Path) -> None:
    content = (PicturePart(index=0), TextPart(text="the <image> </s>"), PicturePart(index=1))
    pictures = (png(70, 200), png(56, 56))
    submit = Submit(
        request_id="r", model="m", messages=ask(*content), pictures=pictures, sampling=SamplingParameters(max_tokens=4)
    )
    made = processor_of(checkpoint)
    prompt = made.prepare(submit, "e", 1024)
    assert [picture.pixels.shape for picture in prompt.pictures] == [(56, 56, 3)] * 2
    assert prompt.prompt_token_ids[0] == 1
    assert prompt.prompt_token_ids.count(IMAGE) == 2 * 16  # what the user typed is text
    assert 2 not in prompt.prompt_token_ids
    assert prompt.stop_token_ids == {2}


@pytest.mark.parametrize("bounds", [(1, None), (None, 1000)])
def test_bounds_on_pixels_are_refused(checkpoint: Path, bounds: tuple[int | None, int | None]) -> None:
    opened = open_checkpoint(checkpoint)
    with pytest.raises(PictureBoundsError, match="becomes 56 x 56 pixels"):
        prompts_of(opened.family).prompt_format(opened, *bounds)


def test_a_token_has_its_own_bytes(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path, TOKENIZER)
    text = "the cat\n\u00e9\U0001f431"
    pieces = [tokenizer.token_bytes(token_id) for token_id in tokenizer.encode_template(text, MARK)]
    assert b"".join(pieces).removeprefix(b"<s>").strip() == text.encode()
    assert len(pieces) > 4
