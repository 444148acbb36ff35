"""Draw the pictures in examples/pictures with the code that drew the training pictures.

python -m examples.demo_model.example_pictures examples/pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

from examples.demo_model.drawing import Point, Rgb, Scene, Shape, draw, encode_jpeg, encode_png

_WHITE: Rgb = (255, 255, 255)
_RED: Rgb = (220, 20, 40)
_GREEN: Rgb = (0, 128, 0)
_BLUE: Rgb = (30, 90, 220)
_YELLOW: Rgb = (250, 220, 30)
_PURPLE: Rgb = (128, 0, 128)
_ORANGE: Rgb = (255, 140, 0)


def example_scenes() -> dict[str, Scene]:
    """The scenes by the name of their picture file."""
    return {
        "red-circle.png": _scene(224, 224, _large("circle", "red", _RED, (112, 112), 70)),
        "blue-square-green-star.jpg": _scene(
            336, 224, _large("square", "blue", _BLUE, (95, 120), 62), _large("star", "green", _GREEN, (245, 105), 60)
        ),
        "three-triangles.png": _scene(
            300,
            180,
            _small("triangle", "orange", _ORANGE, (52, 110), 22),
            _large("triangle", "purple", _PURPLE, (150, 80), 42),
            _small("triangle", "orange", _ORANGE, (248, 120), 24),
        ),
        "yellow-heart-on-black.png": Scene(
            160, 200, "black", (0, 0, 0), (_large("heart", "yellow", _YELLOW, (80, 100), 55),)
        ),
        "four-shapes.jpg": Scene(
            420,
            300,
            "light gray",
            (225, 225, 225),
            (
                _large("diamond", "purple", _PURPLE, (75, 90), 62),
                _small("circle", "red", _RED, (170, 225), 32),
                _large("star", "blue", _BLUE, (260, 95), 66),
                _small("square", "green", _GREEN, (360, 230), 36),
            ),
        ),
    }


def _scene(width: int, height: int, *shapes: Shape) -> Scene:
    return Scene(width, height, "white", _WHITE, shapes)


def _large(kind: str, color: str, rgb: Rgb, center: Point, radius: float) -> Shape:
    return Shape(kind, color, rgb, "large", center, radius)


def _small(kind: str, color: str, rgb: Rgb, center: Point, radius: float) -> Shape:
    return Shape(kind, color, rgb, "small", center, radius)


def write_example_pictures(directory: Path) -> None:
    """Draw every scene into `directory`, as PNG or JPEG by its name."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, scene in example_scenes().items():
        image = draw(scene)
        file = encode_png(image) if name.endswith(".png") else encode_jpeg(image, Random(name))
        (directory / name).write_bytes(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the example pictures.")
    parser.add_argument("directory", type=Path)
    write_example_pictures(parser.parse_args().directory)
