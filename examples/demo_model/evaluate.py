"""Measure the demo model on pictures that it was never trained on, and print a table.

python -m examples.demo_model.evaluate                              the checkpoint in this folder, in this process
python -m examples.demo_model.evaluate --url http://localhost:8080  the same questions to a server
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from examples.demo_model import answers
from examples.demo_model.answerers import Answerer, Question, http_answerer, local_answerer
from examples.demo_model.drawing import (
    MAX_SIDE,
    MIN_SIDE,
    SHAPE_COLORS,
    SHAPE_KINDS,
    Scene,
    draw,
    encode_jpeg,
    encode_png,
    random_scene,
)
from examples.demo_model.questions import Exchange, ask, ask_about_several, ask_off_topic

CHECKPOINT = Path(__file__).parent / "checkpoint"
# Training seeds its workers with "2025/...", so these pictures are others.
SEED = "evaluation/1"
_THINGS = re.compile(rf"\b(an?|one|two|three|four) ({'|'.join(SHAPE_COLORS)}) ({'|'.join(SHAPE_KINDS)})s?\b")
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}


@dataclass(frozen=True)
class Case:
    """A question, the row of the table it counts in, and the test that a right answer passes."""

    row: str
    question: Question
    is_right: Callable[[str], bool]


def mentioned_shapes(text: str) -> Counter[tuple[str, str]]:
    """How many shapes of which colour and kind a sentence names: {("red", "circle"): 2}."""
    named: Counter[tuple[str, str]] = Counter()
    for number, color, kind in _THINGS.findall(text.lower()):
        named[color, kind] += _NUMBERS[number]
    return named


def cases(pictures: int) -> Iterator[Case]:
    """Questions about `pictures` freshly drawn pictures, one to four shapes in turn, sides of 56 to 448 pixels."""
    rng = Random(SEED)
    for index in range(pictures):
        scene, file = _drawn(rng, count=1 + index % 4)
        yield _contents_case(scene, file, "What is in this image?", f"What is in this image? ({len(scene.shapes)})")
        for row, exchange in _plain_questions(scene, rng):
            yield _exact_case(row, exchange, (file,))
        reworded = _asked(scene, "contents", rng)
        yield _contents_case(scene, file, reworded.question, "What is in it? (other wordings)")
        for topic in ("description", "count", "color", "presence", "place", "size", "kind", "background"):
            asked = ask(scene, topic, rng)
            if asked is not None and rng.random() < 0.25:
                yield _exact_case(f"{topic} (any wording)", asked, (file,))
        if index % 5 == 0:
            other, other_file = _drawn(rng, count=rng.randint(1, 2))
            yield _exact_case("two pictures", ask_about_several((scene, other), rng), (file, other_file))
            yield _exact_case("no picture", ask_off_topic(has_picture=False, rng=rng), ())


def _drawn(rng: Random, count: int) -> tuple[Scene, bytes]:
    scene = random_scene(rng, rng.randint(MIN_SIDE, MAX_SIDE), rng.randint(MIN_SIDE, MAX_SIDE), count)
    image = draw(scene)
    return scene, encode_png(image) if rng.random() < 0.5 else encode_jpeg(image, rng)


def _plain_questions(scene: Scene, rng: Random) -> Iterable[tuple[str, Exchange]]:
    """The questions of the demo's promise, in their plainest wording."""
    kind = rng.choice(scene.shapes).kind
    yield "How many ...s are there?", _exchange(f"How many {kind}s are there?", answers.number_of(scene, None, kind))
    single = [shape for shape in scene.shapes if sum(other.kind == shape.kind for other in scene.shapes) == 1]
    if single:
        kind = rng.choice(single).kind
        yield "What color is the ...?", _exchange(f"What color is the {kind}?", answers.color_of(scene, kind))
    color, kind = rng.choice(list(SHAPE_COLORS)), rng.choice(SHAPE_KINDS)
    if rng.random() < 0.5:
        shape = rng.choice(scene.shapes)
        color, kind = shape.color, shape.kind
    question = f"Is there {answers.with_article(f'{color} {kind}')}?"
    yield "Is there a ...?", _exchange(question, answers.presence(scene, color, kind))


def _exchange(question: str, answer: str) -> Exchange:
    return Exchange("plain", question, answer)


def _asked(scene: Scene, topic: str, rng: Random) -> Exchange:
    exchange = ask(scene, topic, rng)
    if exchange is None:
        raise ValueError(f"No question about {topic} can be asked of {scene}.")
    return exchange


def _contents_case(scene: Scene, file: bytes, prompt: str, row: str) -> Case:
    expected = Counter((shape.color, shape.kind) for shape in scene.shapes)
    return Case(row, Question(prompt, (file,)), lambda text: mentioned_shapes(text) == expected)


def _exact_case(row: str, exchange: Exchange, files: tuple[bytes, ...]) -> Case:
    return Case(row, Question(exchange.question, files), lambda text: text == exchange.answer)


def evaluate(answerer: Answerer, pictures: int, show_wrong: int = 0) -> dict[str, tuple[int, int]]:
    """Right answers and questions of each row, in the order in which the rows first come up."""
    asked = list(cases(pictures))
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for case, text in zip(asked, answerer([case.question for case in asked]), strict=True):
        passed = case.is_right(text)
        right[case.row] += passed
        total[case.row] += 1
        if not passed and show_wrong > 0:
            show_wrong -= 1
            print(f"wrong: {case.row}: {case.question.prompt!r} -> {text!r}")
    return {row: (right[row], count) for row, count in total.items()}


def table(results: dict[str, tuple[int, int]]) -> str:
    """The results as a Markdown table."""
    lines = ["| question | right | asked | % |", "|---|---|---|---|"]
    lines += [f"| {row} | {right} | {asked} | {100 * right / asked:.1f} |" for row, (right, asked) in results.items()]
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure the demo model on freshly drawn pictures.")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="NeMo 2.0 or Hugging Face directory")
    parser.add_argument("--url", help="ask the REST gateway at this address instead")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--show-wrong", type=int, default=0, metavar="N", help="print the first N wrong answers")
    options = parser.parse_args()
    answerer = http_answerer(options.url) if options.url else local_answerer(options.checkpoint)
    print(table(evaluate(answerer, options.pictures, options.show_wrong)))


if __name__ == "__main__":
    main()
