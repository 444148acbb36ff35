from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

from examples.demo_model import answers
from examples.demo_model.answerers import Question, local_answerer
from examples.demo_model.batches import BatchMaker
from examples.demo_model.drawing import Scene, Shape, draw, encode_jpeg, random_count, random_scene
from examples.demo_model.evaluate import CHECKPOINT, mentioned_shapes
from examples.demo_model.example_pictures import example_scenes
from examples.demo_model.model import Batch, _patches, decode, demo_config
from examples.demo_model.questions import TOPICS, Exchange, ask, ask_about_several, ask_off_topic
from triton_worker.processing.pictures import ResizeBounds, resize_picture

TOKENIZER = CHECKPOINT / "context" / "nemo_tokenizer" / "tokenizer.json"
PICTURES = Path(__file__).parents[2] / "examples" / "pictures"


def scenes(seed: int, number: int) -> list[Scene]:
    rng = Random(seed)
    sides = [(rng.randint(56, 448), rng.randint(56, 448)) for _ in range(number)]
    return [random_scene(rng, width, height, random_count(rng)) for width, height in sides]


def some_exchanges(scene: Scene, other: Scene, rng: Random) -> Iterator[Exchange]:
    asked = (ask(scene, topic, rng) for topic in TOPICS)
    yield from (exchange for exchange in asked if exchange is not None)
    yield ask_about_several((scene, other), rng)
    yield ask_off_topic(has_picture=False, rng=rng)


def shape(kind: str, color: str, x: float, y: float = 50, size: str = "small") -> Shape:
    return Shape(kind, color, (0, 0, 0), size, (x, y), 8.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights, large enough that positions, masks and biases all change the output."""
    token_ids = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()}
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(demo_config(token_ids)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1) if parameter.ndim == 1 else parameter.mul_(3)
    return model


def test_the_same_seed_draws_the_same_bytes() -> None:
    first, second = scenes(seed=3, number=6), scenes(seed=3, number=6)
    assert first == second
    assert first != scenes(seed=4, number=6)
    for scene in first:
        assert draw(scene).tobytes() == draw(scene).tobytes()
        assert encode_jpeg(draw(scene), Random(1)) == encode_jpeg(draw(scene), Random(1))


def test_labels_match_the_pixels() -> None:
    for scene in scenes(seed=5, number=40):
        image = draw(scene)
        assert image.size == (scene.width, scene.height)
        for drawn in scene.shapes:
            assert image.getpixel((int(drawn.center[0]), int(drawn.center[1]))) == drawn.rgb
            corner = (drawn.center[0] + drawn.radius, drawn.center[1] - drawn.radius)
            if all(math.dist(corner, other.center) > other.radius + 2 for other in scene.shapes) and (
                0 <= corner[0] < scene.width and 0 <= corner[1] < scene.height
            ):
                assert image.getpixel((int(corner[0]), int(corner[1]))) == scene.background_rgb


def test_shapes_neither_overlap_nor_leave_the_picture() -> None:
    for scene in scenes(seed=6, number=200):
        axis = 0 if scene.width >= scene.height else 1
        along = [drawn.center[axis] for drawn in scene.shapes]
        assert along == sorted(along)
        for index, drawn in enumerate(scene.shapes):
            for position, side in zip(drawn.center, (scene.width, scene.height), strict=True):
                assert drawn.radius <= position <= side - drawn.radius
            for other in scene.shapes[:index]:
                assert math.dist(drawn.center, other.center) > drawn.radius + other.radius


def test_answers_say_what_is_there() -> None:
    shapes = (shape("circle", "red", 10), shape("star", "blue", 50), shape("circle", "red", 90, 90, "large"))
    scene = Scene(100, 100, "white", (255, 255, 255), shapes)
    assert answers.contents(scene) == "Two red circles and a blue star."
    assert answers.description(scene) == (
        "The image shows a small red circle, a small blue star and a large red circle on a white background."
    )
    assert answers.color_of(scene, "circle") == "The circles are red."
    assert answers.color_of(scene, "star") == "The star is blue."
    assert answers.number_of(scene, None, "circle") == "There are two circles."
    assert answers.number_of(scene, "red", None) == "There are two red shapes."
    assert answers.presence(scene, "blue", "circle") == "No, there is no blue circle."
    assert answers.presence(scene, None, "star") == "Yes, there is a star."
    assert answers.place_of(scene, shapes[1]) == "The star is in the center."
    assert answers.place_of(scene, shapes[2]) == "The circle is at the bottom right."
    assert answers.several_contents((scene, Scene(9, 9, "white", (255, 255, 255), ()))) == (
        "The first image shows two red circles and a blue star. The second image shows nothing."
    )


def test_the_evaluation_reads_contents_back_from_any_right_sentence() -> None:
    for scene in scenes(seed=7, number=100):
        expected = Counter((drawn.color, drawn.kind) for drawn in scene.shapes)
        assert mentioned_shapes(answers.contents(scene)) == expected
        if scene.shapes:
            assert mentioned_shapes(answers.contents(scene).replace(".", " and a red circle.")) != expected


def test_every_text_round_trips_the_tokenizer(tokenizer: Tokenizer) -> None:
    rng = Random(8)
    drawn = scenes(seed=8, number=60)
    for scene, other in zip(drawn, reversed(drawn), strict=True):
        for exchange in some_exchanges(scene, other, rng):
            assert tokenizer.decode(tokenizer.encode(exchange.question).ids) == exchange.question
            ids = tokenizer.encode(exchange.answer).ids
            assert tokenizer.decode(ids) == exchange.answer
            # Words of answers are tokens of their own, a rare one ("empty") a few.
            assert len(ids) <= 2 * len(exchange.answer.split()) + 2


def test_pictures_are_resized_as_transformers_does() -> None:
    processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
    for scene in scenes(seed=9, number=4):
        image = draw(scene)
        pixels = torch.from_numpy(resize_picture(image, ResizeBounds())).permute(2, 0, 1)[None]
        expected = processor(images=image, return_tensors="pt")["pixel_values"].view(-1, 3, 2, 14 * 14)
        ours = _patches(pixels)[0].view(-1, 3, 14 * 14)
        assert torch.equal(expected[:, :, 0], expected[:, :, 1])
        # The fast processor rounds its bicubic filter a little differently than Pillow, which the slow one uses.
        assert (ours - expected[:, :, 0]).abs().mean() < 0.02


def test_training_computes_what_transformers_computes(
    tokenizer: Tokenizer, model: Qwen2_5_VLForConditionalGeneration
) -> None:
    maker = BatchMaker(tokenizer, Random(10), pictures=4, questions=3)
    compared = Counter[int]()
    for _ in range(3):
        batch = maker.make()
        with torch.no_grad():
            hidden = decode(model, batch)
        for row, branch, pictures in _branches(batch, maker.image_pad):
            expected = _reference(model, batch.ids[row][branch], pictures, maker.image_pad, batch)
            assert torch.allclose(hidden[row][branch], expected, atol=2e-4)
            compared[len(pictures)] += 1
    assert compared[0]
    assert compared[1]


def test_batches_teach_the_answers_and_nothing_else(tokenizer: Tokenizer) -> None:
    batch = BatchMaker(tokenizer, Random(12), pictures=6).make()
    learned = [batch.targets[batch.answer == number].tolist() for number in range(int(batch.answer.max()) + 1)]
    for ids in learned:
        text = tokenizer.decode(ids, skip_special_tokens=False)
        assert text.endswith("<|im_end|>")
        assert text[0].isupper()
    # The place before the first learned token of each answer is the end of its question.
    assert not torch.isin(
        batch.predicting[batch.answer.diff(prepend=torch.tensor([-1])) > 0], batch.predicting + 1
    ).any()


def test_the_example_pictures_are_those_that_the_code_draws() -> None:
    assert {path.name for path in PICTURES.iterdir()} == set(example_scenes())
    for name, scene in example_scenes().items():
        with Image.open(PICTURES / name) as image:
            assert image.size == (scene.width, scene.height)
            if name.endswith(".png"):
                assert image.convert("RGB").tobytes() == draw(scene).tobytes()


def test_the_checkpoint_is_small_and_knows_no_machine() -> None:
    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    for path in files:
        content = path.read_bytes()
        assert not any(mark in content for mark in (b"/work", b"/tmp", b"/root", b"/home")), path


def test_the_checkpoint_names_the_example_shapes() -> None:
    answer = local_answerer(CHECKPOINT)
    picture = (PICTURES / "red-circle.png").read_bytes()
    prompts = ("What is in this image?", "what color is the circle", "How many circles are there?")
    asked = [Question(prompt, (picture,)) for prompt in prompts] + [Question("What is in this image?")]
    assert answer(asked) == [
        "A red circle.",
        "The circle is red.",
        "There is one circle.",
        "I see no picture. Please send me one.",
    ]


def _branches(batch: Batch, image_pad: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Row, tokens (bool [S]) and pictures of every sequence that a branch makes with the tokens it shares."""
    used = 0
    units = batch.pixels.shape[2] * batch.pixels.shape[3] // 28**2
    for row, owners in enumerate(batch.branch):
        count = int((batch.ids[row] == image_pad).sum()) // units
        pictures = batch.pixels[used : used + count]
        used += count
        for branch in range(int(owners.max()) + 1):
            yield row, (owners == 0) | (owners == branch), pictures


def _reference(
    model: Qwen2_5_VLForConditionalGeneration, ids: torch.Tensor, pictures: torch.Tensor, image_pad: int, batch: Batch
) -> torch.Tensor:
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones(1, len(ids))}
    if len(pictures):
        frames = _patches(pictures).view(-1, 3, 1, 14 * 14).expand(-1, -1, 2, -1)
        grid = torch.tensor([[1, batch.pixels.shape[2] // 14, batch.pixels.shape[3] // 14]]).repeat(len(pictures), 1)
        inputs |= {"pixel_values": frames.flatten(1), "image_grid_thw": grid}
        inputs |= {"mm_token_type_ids": (ids[None] == image_pad).int()}
    with torch.no_grad():
        hidden: torch.Tensor = model.model(**inputs).last_hidden_state[0]
    return hidden
