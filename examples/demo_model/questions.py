"""Questions about scenes in many wordings, each with its one right answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from examples.demo_model import answers, wordings
from examples.demo_model.drawing import SHAPE_COLORS, SHAPE_KINDS, Scene, Shape


@dataclass(frozen=True)
class Exchange:
    """One question, its answer and the topic it belongs to."""

    topic: str
    question: str
    answer: str


def ask(scene: Scene, topic: str, rng: Random) -> Exchange | None:
    """A question on the topic about one picture; None where there is none, as of a place in an empty one."""
    asked = _ASKERS[topic](scene, rng)
    if asked is None:
        return None
    question, answer = asked
    return Exchange(topic, wordings.vary(question, rng), answer)


def ask_about_several(scenes: Sequence[Scene], rng: Random) -> Exchange:
    """A question about two or three pictures: all of them, one of them, or how many there are."""
    choice = rng.random()
    if choice < 0.45:
        question, answer = rng.choice(wordings.CONTENTS_OF_SEVERAL), answers.several_contents(scenes)
    elif choice < 0.52:
        question, answer = rng.choice(wordings.NUMBER_OF_IMAGES), answers.number_of_images(len(scenes))
    else:
        index = rng.randrange(len(scenes))
        ordinal = ("first", "second", "third")[index]
        if choice < 0.8:
            question, answer = rng.choice(wordings.CONTENTS_OF_NTH), answers.nth_contents(scenes[index], ordinal)
        else:
            question, answer = rng.choice((_color, _count, _presence))(scenes[index], rng)
            for place in (" in this {image}", " in the {image}"):
                question = question.replace(place, "")
            question = f"{question.rstrip('?. ')} in the {{ordinal}} {{image}}?"
        question = question.replace("{ordinal}", ordinal)
    return Exchange("several", wordings.vary(question, rng), answer)


def ask_off_topic(has_picture: bool, rng: Random) -> Exchange:
    """What people type that is no question about a picture in front of them."""
    if not has_picture and rng.random() < 0.35:
        topic = rng.choice(tuple(_WORDINGS_WITHOUT_SCENE))
        question = rng.choice(_WORDINGS_WITHOUT_SCENE[topic])
        question = question.replace("{kind}", rng.choice(SHAPE_KINDS)).replace("{kinds}", rng.choice(SHAPE_KINDS) + "s")
        return Exchange("no picture", wordings.vary(question, rng), wordings.NO_PICTURE)
    if not has_picture and rng.random() < 0.1:
        return Exchange("no picture", wordings.vary(rng.choice(wordings.NUMBER_OF_IMAGES), rng), wordings.NO_PICTURE)
    questions, answer = rng.choice(wordings.SMALL_TALK)
    return Exchange("small talk", wordings.vary(rng.choice(questions), rng), answer)


def _contents(scene: Scene, rng: Random) -> tuple[str, str]:
    return rng.choice(wordings.CONTENTS), answers.contents(scene)


def _description(scene: Scene, rng: Random) -> tuple[str, str]:
    return rng.choice(wordings.DESCRIPTION), answers.description(scene)


def _color(scene: Scene, rng: Random) -> tuple[str, str]:
    kind = _some_kind(scene, rng)
    several = sum(shape.kind == kind for shape in scene.shapes) > 1
    templates = wordings.COLORS if several and rng.random() < 0.7 else wordings.COLOR
    return _filled(rng.choice(templates), None, kind), answers.color_of(scene, kind)


def _kind(scene: Scene, rng: Random) -> tuple[str, str]:
    color = rng.choice(scene.shapes).color if scene.shapes and rng.random() < 0.85 else rng.choice(list(SHAPE_COLORS))
    return _filled(rng.choice(wordings.KIND), color, None), answers.kind_of(scene, color)


def _count(scene: Scene, rng: Random) -> tuple[str, str]:
    color, kind = _some_filter(scene, rng)
    if color is None and rng.random() < 0.3:
        kind = None
    return _filled(rng.choice(wordings.COUNT), color, kind), answers.number_of(scene, color, kind)


def _presence(scene: Scene, rng: Random) -> tuple[str, str]:
    color, kind = _some_filter(scene, rng)
    if color is not None and kind is None and rng.random() < 0.6:
        return _filled(rng.choice(wordings.ANYTHING), color, None), answers.presence(scene, color, None)
    return _filled(rng.choice(wordings.PRESENCE), color, kind), answers.presence(scene, color, kind)


def _place(scene: Scene, rng: Random) -> tuple[str, str] | None:
    shape = _only_one_of_its_kind(scene, rng)
    if shape is None or not answers.is_plainly_placed(scene, shape):
        return None
    color = shape.color if rng.random() < 0.3 else None
    return _filled(rng.choice(wordings.PLACE), color, shape.kind), answers.place_of(scene, shape)


def _size(scene: Scene, rng: Random) -> tuple[str, str] | None:
    shape = _only_one_of_its_kind(scene, rng)
    if shape is None:
        return None
    color = shape.color if rng.random() < 0.3 else None
    return _filled(rng.choice(wordings.SIZE), color, shape.kind), answers.size_of(shape)


def _background(scene: Scene, rng: Random) -> tuple[str, str]:
    return rng.choice(wordings.BACKGROUND), answers.background_of(scene)


def _images(scene: Scene, rng: Random) -> tuple[str, str]:
    return rng.choice(wordings.NUMBER_OF_IMAGES), answers.number_of_images(1)


_ASKERS: dict[str, Callable[[Scene, Random], tuple[str, str] | None]] = {
    "contents": _contents,
    "description": _description,
    "color": _color,
    "kind": _kind,
    "count": _count,
    "presence": _presence,
    "place": _place,
    "size": _size,
    "background": _background,
    "images": _images,
}
TOPICS = tuple(_ASKERS)

_WORDINGS_WITHOUT_SCENE: dict[str, tuple[str, ...]] = {
    "contents": wordings.CONTENTS,
    "description": wordings.DESCRIPTION,
    "color": wordings.COLOR,
    "count": wordings.COUNT,
    "several": wordings.CONTENTS_OF_SEVERAL,
    "background": wordings.BACKGROUND,
}


def _filled(template: str, color: str | None, kind: str | None) -> str:
    """The template with the shape it asks about put in; {kind} also takes a colour, {kinds} is the plural."""
    name = " ".join(word for word in (color, kind or "shape") if word)
    article = answers.with_article(name)
    return (
        template.replace("{a kind}", article)
        .replace("{kinds}", name + "s")
        .replace("{kind}", name)
        .replace("{color}", color or "")
    )


def _some_kind(scene: Scene, rng: Random) -> str:
    """A kind to ask about: mostly one that is there."""
    return rng.choice(scene.shapes).kind if scene.shapes and rng.random() < 0.88 else rng.choice(SHAPE_KINDS)


def _some_filter(scene: Scene, rng: Random) -> tuple[str | None, str | None]:
    """A colour, a kind or both, true of the scene about half of the time; near misses swap one word of a true pair."""
    there = rng.choice(scene.shapes) if scene.shapes and rng.random() < 0.75 else None
    color = there.color if there and rng.random() < 0.8 else rng.choice(list(SHAPE_COLORS))
    kind = there.kind if there and rng.random() < 0.8 else rng.choice(SHAPE_KINDS)
    choice = rng.random()
    if choice < 0.45:
        return None, kind
    return (color, kind) if choice < 0.8 else (color, None)


def _only_one_of_its_kind(scene: Scene, rng: Random) -> Shape | None:
    kinds = [shape.kind for shape in scene.shapes]
    single = [shape for shape in scene.shapes if kinds.count(shape.kind) == 1]
    return rng.choice(single) if single else None
