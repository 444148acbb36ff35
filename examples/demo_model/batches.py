"""Training batches: pictures drawn on the spot, resized as the image processor does, and conversations about them."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from random import Random

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from examples.demo_model.drawing import MAX_SIDE, MIN_SIDE, Scene, draw, encode_jpeg, random_count, random_scene
from examples.demo_model.model import MERGE, PATCH, Batch
from examples.demo_model.questions import TOPICS, Exchange, ask, ask_about_several, ask_off_topic
from triton_worker.processing.pictures import ResizeBounds, resize_picture

UNIT = PATCH * MERGE
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SYSTEM_PROMPT = "You are a helpful assistant."
OTHER_SYSTEM_PROMPTS = (
    "You are a helpful assistant that looks at pictures.",
    "Answer in one short sentence.",
    "You are a vision model. Answer the question about the image.",
    "Be brief.",
)
# Questions on these topics are the ones people ask first, so every picture gets them more often than the others.
EXTRA_TOPICS = ("contents", "contents", "color", "count", "presence", "description")


@dataclass
class Row:
    """One sequence: id, branch and position of each token, which tokens are to be learned, and the next positions."""

    ids: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    answers: list[range] = field(default_factory=list)
    following: dict[int, int] = field(default_factory=dict)


class BatchMaker:
    """Makes batches. `easy` ones have one mid-sized shape each and no side shows, to learn to look at all."""

    def __init__(self, tokenizer: Tokenizer, rng: Random, pictures: int, questions: int = 6) -> None:
        self.tokenizer = tokenizer
        self.rng = rng
        self.pictures = pictures
        self.questions = questions
        token_ids = tokenizer.get_vocab()
        self.image_pad = token_ids["<|image_pad|>"]
        self.pad = token_ids["<|endoftext|>"]

    def make(self, easy: bool = False) -> Batch:
        """A batch of pictures of one size, with conversations about them and some without a picture."""
        rng = self.rng
        grid = (rng.randint(3, 8), rng.randint(3, 8)) if easy else (rng.randint(2, 16), rng.randint(2, 16))
        scenes = [self._scene(grid, easy) for _ in range(self.pictures)]
        pixels = torch.stack([self._pixels(scene, grid) for scene in scenes])
        rows = [self._row(group, grid, easy) for group in self._groups(scenes, easy)]
        if not easy:
            rows += [self._text_only_row() for _ in range(max(1, self.pictures // 16))]
        return self._collate(rows, pixels)

    def _groups(self, scenes: list[Scene], easy: bool) -> list[list[Scene]]:
        """Which pictures share a row. All rows of a batch have as many, since they are padded to the longest."""
        if easy or self.rng.random() < 0.8:
            return [[scene] for scene in scenes]
        size = 3 if self.rng.random() < 0.1 else 2
        return [scenes[start : start + size] for start in range(0, len(scenes), size)]

    def _scene(self, grid: tuple[int, int], easy: bool) -> Scene:
        height, width = (self._side(cells) for cells in grid)
        count = self.rng.choices((1, 2), weights=(3, 1))[0] if easy else random_count(self.rng)
        return random_scene(self.rng, width, height, count)

    def _side(self, cells: int) -> int:
        """A length in pixels which the image processor rounds to `cells` units."""
        sides = [side for side in range(UNIT * cells - 14, UNIT * cells + 15) if round(side / UNIT) == cells]
        return self.rng.choice([side for side in sides if MIN_SIDE <= side <= MAX_SIDE])

    def _pixels(self, scene: Scene, grid: tuple[int, int]) -> Tensor:
        image = draw(scene)
        if self.rng.random() < 0.5:
            image = Image.open(io.BytesIO(encode_jpeg(image, self.rng)))
        resized = resize_picture(image, ResizeBounds())
        return torch.from_numpy(resized).permute(2, 0, 1)

    def _row(self, scenes: list[Scene], grid: tuple[int, int], easy: bool) -> Row:
        exchanges = self._exchanges(scenes, easy)
        images = IMAGE * len(scenes)
        choice = self.rng.random()
        row = Row()
        if not easy and choice < 0.06:
            # Without any template: the bare question after the picture.
            self._append(row, images, 0, grid)
            for number, exchange in enumerate(exchanges, start=1):
                self._branch(row, exchange.question + self.rng.choice(("", "\n", " ")), exchange.answer, number)
            return row
        self._append(row, self._system() + "<|im_start|>user\n", 0, grid)
        if not easy and choice < 0.25:
            # Several turns, the pictures before or after the first question.
            first = exchanges[0].question
            gap = self.rng.choice(("", "", " ", "\n"))
            opening = first + gap + images if self.rng.random() < 0.6 else images + first
            self._append(row, opening, 0, grid)
            self._turns(row, [exchanges[0].answer] + [exchange.answer for exchange in exchanges[1:4]], exchanges[1:4])
            return row
        self._append(row, images + ("\n" if self.rng.random() < 0.1 else ""), 0, grid)
        for number, exchange in enumerate(exchanges, start=1):
            self._branch(row, exchange.question + "<|im_end|>\n<|im_start|>assistant\n", exchange.answer, number)
        return row

    def _exchanges(self, scenes: list[Scene], easy: bool) -> list[Exchange]:
        if len(scenes) > 1:
            return [ask_about_several(scenes, self.rng) for _ in range(self.questions)]
        topics = EXTRA_TOPICS[:5] if easy else tuple(TOPICS) + EXTRA_TOPICS
        drawn = [ask(scenes[0], topic, self.rng) for topic in self.rng.sample(topics, min(len(topics), self.questions))]
        exchanges = [exchange for exchange in drawn if exchange is not None]
        if not easy and self.rng.random() < 0.1:
            exchanges[-1] = ask_off_topic(True, self.rng)
        return exchanges

    def _text_only_row(self) -> Row:
        exchange = ask_off_topic(False, self.rng)
        row = Row()
        self._append(row, f"{self._system()}<|im_start|>user\n{exchange.question}", 0, (0, 0))
        self._turns(row, [exchange.answer], [])
        return row

    def _system(self) -> str:
        prompt = SYSTEM_PROMPT if self.rng.random() < 0.93 else self.rng.choice(OTHER_SYSTEM_PROMPTS)
        return f"<|im_start|>system\n{prompt}<|im_end|>\n"

    def _turns(self, row: Row, answers: list[str], following: list[Exchange]) -> None:
        """The first answer, then each further question and its answer, in one sequence."""
        for index, answer in enumerate(answers):
            self._append(row, "<|im_end|>\n<|im_start|>assistant\n", 0)
            self._append(row, answer + "<|im_end|>", 0, learned=True)
            if index < len(following):
                self._append(row, f"\n<|im_start|>user\n{following[index].question}", 0)

    def _branch(self, row: Row, question: str, answer: str, number: int) -> None:
        self._append(row, question, number)
        self._append(row, answer + "<|im_end|>", number, learned=True)

    def _append(self, row: Row, text: str, branch: int, grid: tuple[int, int] = (0, 0), learned: bool = False) -> None:
        """Tokenize the text and lay it after what its branch has seen; a picture's positions spread over its grid."""
        start = len(row.ids)
        following = row.following.get(branch, row.following.get(0, 0))
        for token in self.tokenizer.encode(text).ids:
            if token == self.image_pad:
                cells = [(following, following + y, following + x) for y in range(grid[0]) for x in range(grid[1])]
                following += max(grid)
            else:
                cells = [(following, following, following)]
                following += 1
            row.ids += [token] * len(cells)
            row.positions += cells
        row.following[branch] = following
        row.branch += [branch] * (len(row.ids) - start)
        if learned:
            row.answers.append(range(start, len(row.ids)))

    def _collate(self, rows: list[Row], pixels: Tensor) -> Batch:
        longest = max(len(row.ids) for row in rows)
        # A multiple of 8 keeps the attention kernels on their aligned path.
        longest += -longest % 8
        ids = torch.full((len(rows), longest), self.pad, dtype=torch.long)
        branch = torch.full((len(rows), longest), -1)
        positions = torch.zeros(3, len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
            branch[index, : len(row.ids)] = torch.tensor(row.branch)
            positions[:, index, : len(row.ids)] = torch.tensor(row.positions).T
        spans = [(index, span) for index, row in enumerate(rows) for span in row.answers]
        learned = torch.tensor([index * longest + place for index, span in spans for place in span])
        lengths = torch.tensor([len(span) for _, span in spans])
        return Batch(
            pixels=pixels,
            ids=ids,
            branch=branch,
            positions=positions,
            image_slots=(ids.flatten() == self.image_pad).nonzero().flatten(),
            # An answer follows its question without a gap, so its tokens are predicted one place before they stand.
            predicting=learned - 1,
            targets=ids.flatten()[learned],
            answer=torch.repeat_interleave(torch.arange(len(spans)), lengths),
        )
