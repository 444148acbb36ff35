"""What is true of a scene, said in short English sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from examples.demo_model.drawing import Scene, Shape

NUMBER_WORDS = ("no", "one", "two", "three", "four")


def contents(scene: Scene) -> str:
    """All shapes in reading order, for example: A red circle and two blue stars."""
    if not scene.shapes:
        return "The image is empty."
    return _capitalized(_listed(_grouped(shape.name for shape in scene.shapes))) + "."


def description(scene: Scene) -> str:
    """All that can be said in one sentence: sizes, colours, kinds and the background."""
    things = _listed(_grouped(f"{shape.size} {shape.name}" for shape in scene.shapes)) if scene.shapes else "nothing"
    return f"The image shows {things} on a {scene.background} background."


def color_of(scene: Scene, kind: str) -> str:
    """For example: The square is blue. Or, of several: The squares are blue and red."""
    colors = list(dict.fromkeys(shape.color for shape in scene.shapes if shape.kind == kind))
    if not colors:
        return f"There is no {kind}."
    several = sum(shape.kind == kind for shape in scene.shapes) > 1
    return f"The {kind}s are {_listed(colors)}." if several else f"The {kind} is {colors[0]}."


def kind_of(scene: Scene, color: str) -> str:
    """For example: The red shape is a circle."""
    kinds = [shape.kind for shape in scene.shapes if shape.color == color]
    if not kinds:
        return f"There is no {color} shape."
    if len(kinds) == 1:
        return f"The {color} shape is a {kinds[0]}."
    return f"The {color} shapes are {_listed(_grouped(kinds))}."


def number_of(scene: Scene, color: str | None, kind: str | None) -> str:
    """For example: There are two red circles. Where None is given, any colour or kind counts."""
    count = sum(_matches(shape, color, kind) for shape in scene.shapes)
    name = " ".join(word for word in (color, kind or "shape") if word)
    return f"There is one {name}." if count == 1 else f"There are {NUMBER_WORDS[count]} {name}s."


def presence(scene: Scene, color: str | None, kind: str | None) -> str:
    """For example: Yes, there is a green star. Or: No, there is no green star."""
    name = " ".join(word for word in (color, kind or "shape") if word)
    if any(_matches(shape, color, kind) for shape in scene.shapes):
        return f"Yes, there is {with_article(name)}."
    return f"No, there is no {name}."


def place_of(scene: Scene, shape: Shape) -> str:
    """For example: The star is at the top left. The picture's thirds decide."""
    return f"The {shape.kind} is {_place(scene, shape)}."


def size_of(shape: Shape) -> str:
    """For example: The star is small."""
    return f"The {shape.kind} is {shape.size}."


def background_of(scene: Scene) -> str:
    """For example: The background is light blue."""
    return f"The background is {scene.background}."


def several_contents(scenes: Sequence[Scene]) -> str:
    """What each of several pictures shows."""
    ordinals = ("first", "second", "third")
    return " ".join(nth_contents(scene, ordinal) for scene, ordinal in zip(scenes, ordinals, strict=False))


def nth_contents(scene: Scene, ordinal: str) -> str:
    """For example: The second image shows a red circle."""
    things = _listed(_grouped(shape.name for shape in scene.shapes)) if scene.shapes else "nothing"
    return f"The {ordinal} image shows {things}."


def number_of_images(count: int) -> str:
    """For example: There are two images."""
    return "There is one image." if count == 1 else f"There are {NUMBER_WORDS[count]} images."


def with_article(name: str) -> str:
    """The name after "a" or "an"."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def is_plainly_placed(scene: Scene, shape: Shape) -> bool:
    """Whether the centre keeps away from the lines between the thirds, so that its place is no matter of taste."""
    fractions = (shape.center[0] / scene.width, shape.center[1] / scene.height)
    return all(abs(fraction - line) > 0.05 for fraction in fractions for line in (1 / 3, 2 / 3))


def _place(scene: Scene, shape: Shape) -> str:
    column = int(3 * shape.center[0] / scene.width)
    row = int(3 * shape.center[1] / scene.height)
    if (row, column) == (1, 1):
        return "in the center"
    if row == 1:
        return "on the left" if column == 0 else "on the right"
    vertical = "top" if row == 0 else "bottom"
    return f"at the {vertical}" + ("", " left", " right")[(1, 0, 2).index(column)]


def _matches(shape: Shape, color: str | None, kind: str | None) -> bool:
    return color in (None, shape.color) and kind in (None, shape.kind)


def _grouped(names: Iterable[str]) -> list[str]:
    """Equal names together, each at its first place: "two red circles"."""
    counts = Counter(names)
    return [with_article(name) if count == 1 else f"{NUMBER_WORDS[count]} {name}s" for name, count in counts.items()]


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]
