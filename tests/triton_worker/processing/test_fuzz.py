"""Whatever is sent, the processor prepares it or refuses it in words of our own."""

import contextlib
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings

from protocol.messages import ChatMessage, ErrorCode, PicturePart, Submit, TextPart
from tests.hostile_inputs import NAMED, hostile_pictures, hostile_texts
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.messages import Generate
from triton_worker.models.qwen_vl.prompts import prompt_format
from triton_worker.processing.pictures import PictureLimits
from triton_worker.processing.processor import Processor
from triton_worker.processing.refusal import RequestRefused

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of what it passes over

FIXTURE = Path(__file__).parents[2] / "fixtures" / "nemo2-qwen25vl-tiny"
CHECKPOINT = open_checkpoint(FIXTURE)
PROCESSOR = Processor(CHECKPOINT, prompt_format(CHECKPOINT, max_pixels=28 * 28 * 64), PictureLimits())
IMAGE = PROCESSOR.tokenizer.image_token_id
TAKEN = {"1 by 1", "unpacks to 50 MB", "gif of 500 frames", "webp of 50 frames", "broken exif", "cmyk", "16 bits"}
TAKEN |= {"palette with alpha"}

bounded = settings(max_examples=100, deadline=None, derandomize=True)


def prepare(text: str, *pictures: bytes) -> Generate:
    content = (*map(PicturePart, range(len(pictures))), TextPart(text))
    submit = Submit(request_id="r", model="m", messages=(ChatMessage("user", content),), pictures=pictures)
    return PROCESSOR.prepare(submit, "e", 4096)


def checked(refusal: RequestRefused) -> None:
    assert refusal.error.code in (ErrorCode.INVALID_PICTURE, ErrorCode.INVALID_REQUEST)
    assert not any(word in refusal.error.message for word in ("Traceback", "PIL", "Error", "0x", ".py", "/"))


@pytest.mark.parametrize("name", list(NAMED))
def test_pictures_that_hurt(name: str) -> None:
    tracemalloc.start()  # what the interpreter allocates, Pillow's text and profile chunks among it
    try:
        if name in TAKEN:
            assert prepare("x", NAMED[name]).prompt_token_ids.count(IMAGE) >= 1
        else:
            with pytest.raises(RequestRefused) as refusal:
                prepare("x", NAMED[name])
            checked(refusal.value)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@bounded
@given(hostile_pictures)
def test_damaged_pictures(data: bytes) -> None:
    try:
        prepare("x", data)
    except RequestRefused as refusal:
        checked(refusal)


@bounded
@given(hostile_texts)
def test_texts(text: str) -> None:
    with contextlib.suppress(RequestRefused):
        prompt = prepare(text).prompt_token_ids
        special = [token_id for token_id in prompt if token_id >= 400]
        assert special == [token_id for token_id in prepare("x").prompt_token_ids if token_id >= 400]
