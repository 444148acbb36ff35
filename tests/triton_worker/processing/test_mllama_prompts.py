"""The prompts and pictures of Llama 3.2 Vision, beside what transformers makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from protocol.messages import ChatMessage, PicturePart, SamplingParameters, Submit, TextPart
from tests.triton_worker.models.mllama import IMAGE, SIDE, TILE_TOKENS, save_random, save_tokenizer
from tests.triton_worker.processing.pictures_asked import png, processor_of
from triton_worker.checkpoint import open_checkpoint
from triton_worker.models.mllama.prompts import LLAMA_3, TOKENIZER
from triton_worker.models.registry import prompts_of
from triton_worker.processing.chat_template import ChatTemplate
from triton_worker.processing.pictures import PictureBoundsError, PictureError
from triton_worker.processing.refusal import RequestRefused
from triton_worker.processing.tiles import Tiles, arrangements
from triton_worker.processing.tokenizer import Tokenizer

SIZES = [(56, 56), (40, 90), (333, 57), (57, 56), (700, 701), (1, 1), (5, 900), (112, 112), (113, 112), (1200, 300)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("mllama"))


def submit(*content: TextPart | PicturePart, pictures: tuple[bytes, ...] = ()) -> Submit:
    messages = (ChatMessage(role="user", content=content),)
    return Submit(
        request_id="r", model="m", messages=messages, pictures=pictures, sampling=SamplingParameters(max_tokens=4)
    )


def assert_as_transformers(height: int, width: int, side: int, max_tiles: int) -> None:
    picture = Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))
    theirs = MllamaImageProcessorPil(
        size={"height": side, "width": side}, max_image_tiles=max_tiles, do_rescale=False, do_normalize=False
    )
    expected = theirs([[picture]], return_tensors="np")
    preparation = Tiles(side, max_tiles, 17)
    prepared = preparation.prepare(picture)
    rows, columns = prepared.shape[0] // side, prepared.shape[1] // side
    tiles = prepared.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, side, side)
    assert prepared.dtype == np.uint8
    assert arrangements(max_tiles).index((rows, columns)) + 1 == expected["aspect_ratio_ids"][0, 0]
    assert np.array_equal(tiles, expected["pixel_values"][0, 0, : rows * columns])
    assert not expected["pixel_values"][0, 0, rows * columns :].any()
    assert preparation.tokens(height, width) == rows * columns * 17


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("side", "max_tiles"), [(56, 4), (560, 4), (56, 6)])
def test_pictures_equal_those_of_transformers(height: int, width: int, side: int, max_tiles: int) -> None:
    assert_as_transformers(height, width, side, max_tiles)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([3, 4]))
@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
def test_any_size_is_tiled_as_by_transformers(height: int, width: int, max_tiles: int) -> None:
    if max(height, width) <= 200 * min(height, width):
        assert_as_transformers(height, width, 28, max_tiles)


def test_a_picture_too_long_is_refused_before_it_is_made_large() -> None:
    with pytest.raises(PictureError, match="more than 200 times"):
        Tiles(560, 4, 1601).tokens(1, 300)
    with pytest.raises(PictureError, match="more than 200 times"):
        Tiles(560, 4, 1601).prepare(Image.new("RGB", (300, 1)))


def test_a_request_becomes_token_ids_and_tiles(checkpoint: Path) -> None:
    content = (PicturePart(index=0), TextPart(text="hat <|image|> <|eot_id|>"), PicturePart(index=1))
    prompt = processor_of(checkpoint).prepare(submit(*content, pictures=(png(70, 200), png(56, 56))), "e", 1024)
    assert [picture.pixels.shape for picture in prompt.pictures] == [(SIDE, 3 * SIDE, 3), (SIDE, SIDE, 3)]
    assert prompt.prompt_token_ids.count(IMAGE) == 2  # what the user typed is text
    end = 256 + 4
    assert prompt.prompt_token_ids.count(end) == 1
    assert prompt.stop_token_ids == {end, 256 + 1}


def test_pictures_that_the_cache_has_no_room_for_are_refused(checkpoint: Path) -> None:
    asked = submit(PicturePart(index=0), pictures=(png(112, 112),))
    made = processor_of(checkpoint)
    made.prepare(asked, "e", 1024, 4 * TILE_TOKENS)
    with pytest.raises(RequestRefused) as refused:
        made.prepare(asked, "e", 1024, 4 * TILE_TOKENS - 1)
    assert (
        refused.value.error.message
        == "The pictures have 68 tokens together; the model's cache holds 67 of one request."
    )
    assert refused.value.error.param == "image"


def test_the_template_renders_as_in_transformers(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    messages = (
        ChatMessage(role="user", content=(PicturePart(index=0), TextPart(text="What is it?"))),
        ChatMessage(role="assistant", content=(TextPart(text="A hat."),)),
        ChatMessage(role="user", content=(TextPart(text="Where?"),)),
    )
    text, mark = ChatTemplate.of(tmp_path, LLAMA_3).render(messages, [])
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>What is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA hat.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhere?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert Tokenizer(tmp_path, TOKENIZER).encode_template(text, mark) == expected


@pytest.mark.parametrize("bounds", [(1, None), (None, 1000)])
def test_bounds_on_pixels_are_refused(checkpoint: Path, bounds: tuple[int | None, int | None]) -> None:
    opened = open_checkpoint(checkpoint)
    with pytest.raises(PictureBoundsError, match="up to 4 tiles of 56 x 56 pixels"):
        prompts_of(opened.family).prompt_format(opened, *bounds)
