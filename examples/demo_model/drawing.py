"""Pictures of simple shapes: what a scene holds, how a random one is drawn up and how it becomes pixels.

Everything follows from the `random.Random` that is passed in: the same seed gives the same scene and the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Point = tuple[float, float]

SHAPE_KINDS = ("circle", "square", "triangle", "star", "diamond", "heart")

# Several anchors a name, so that the pure colours of a drawing program and the muted ones of a chart are both known.
SHAPE_COLORS: dict[str, tuple[Rgb, ...]] = {
    "red": ((255, 0, 0), (220, 20, 40), (200, 35, 35)),
    "green": ((0, 128, 0), (0, 200, 0), (0, 255, 0), (40, 160, 70)),
    "blue": ((0, 0, 255), (30, 90, 220), (35, 55, 170)),
    "yellow": ((255, 255, 0), (250, 220, 30), (235, 210, 0)),
    "purple": ((128, 0, 128), (145, 40, 185), (105, 45, 160)),
    "orange": ((255, 165, 0), (255, 140, 0), (245, 120, 20)),
    "black": ((0, 0, 0), (15, 15, 15)),
    "white": ((255, 255, 255), (248, 248, 248)),
    "pink": ((255, 192, 203), (255, 105, 180), (250, 140, 175)),
    "brown": ((139, 69, 19), (115, 65, 30), (150, 85, 45)),
}
BACKGROUND_COLORS: dict[str, tuple[Rgb, ...]] = {
    "white": ((255, 255, 255), (250, 250, 250)),
    "light gray": ((225, 225, 225), (208, 208, 208)),
    "dark gray": ((96, 96, 96), (72, 72, 72)),
    "black": ((0, 0, 0), (14, 14, 14)),
    "beige": ((245, 232, 205), (236, 222, 195)),
    "light blue": ((190, 218, 245), (173, 216, 230)),
    "light green": ((195, 235, 195), (170, 225, 175)),
    "light yellow": ((255, 250, 200), (250, 244, 185)),
}

MIN_SIDE, MAX_SIDE = 56, 448
SUPERSAMPLING = 4
# A shape nearer than this to the background in RGB is hard to tell from it, for people too.
MIN_CONTRAST = 100.0
# Pixels: below this a star and a heart look alike.
MIN_DIAMETER = 16.0


@dataclass(frozen=True)
class Shape:
    """One shape. Centre and radius in pixels; the radius is that of the circle around it. The angle is in degrees."""

    kind: str
    color: str
    rgb: Rgb
    size: str
    center: Point
    radius: float
    angle: float = 0.0

    @property
    def name(self) -> str:
        """Colour and kind, as in "red circle"."""
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn. Sides in pixels; shapes in reading order (along the longer side)."""

    width: int
    height: int
    background: str
    background_rgb: Rgb
    shapes: tuple[Shape, ...]


def random_scene(rng: Random, width: int, height: int, count: int) -> Scene:
    """A scene of `count` shapes (0 to 4) which overlap neither each other nor the border."""
    while True:
        background = rng.choice(list(BACKGROUND_COLORS))
        background_rgb = _jitter(rng, rng.choice(BACKGROUND_COLORS[background]), 5)
        circles = _place_circles(rng, width, height, count)
        looks = _pick_looks(rng, background_rgb, count)
        if circles is None or looks is None:
            continue
        axis = 0 if width >= height else 1
        circles.sort(key=lambda circle: circle[0][axis])
        shapes = [
            Shape(kind, color, rgb, size, center, radius, _pick_angle(rng, kind))
            for (kind, color, rgb), (center, radius, size) in zip(looks, circles, strict=True)
        ]
        return Scene(width, height, background, background_rgb, tuple(shapes))


def random_count(rng: Random) -> int:
    """How many shapes a picture has: now and then none at all."""
    return rng.choices((0, 1, 2, 3, 4), weights=(2, 28, 36, 20, 14))[0]


def _pick_looks(rng: Random, background: Rgb, count: int) -> list[tuple[str, str, Rgb]] | None:
    """Kind, colour name and RGB of every shape; often repeating one, so that there is something to count."""
    kinds = [rng.choice(SHAPE_KINDS) for _ in range(count)]
    colors = [rng.choice(list(SHAPE_COLORS)) for _ in range(count)]
    if rng.random() < 0.35:
        kinds = [kinds[0] if rng.random() < 0.8 else kind for kind in kinds]
    if rng.random() < 0.25:
        colors = [colors[0] if rng.random() < 0.8 else color for color in colors]
    looks = [
        (kind, color, _jitter(rng, rng.choice(SHAPE_COLORS[color]), 10))
        for kind, color in zip(kinds, colors, strict=True)
    ]
    return looks if all(math.dist(rgb, background) >= MIN_CONTRAST for _, _, rgb in looks) else None


def _jitter(rng: Random, rgb: Rgb, amount: int) -> Rgb:
    red, green, blue = (min(255, max(0, channel + rng.randint(-amount, amount))) for channel in rgb)
    return red, green, blue


def _pick_angle(rng: Random, kind: str) -> float:
    if kind in ("triangle", "star") and rng.random() < 0.2:
        return rng.uniform(0.0, 360.0)
    # A square turned far enough is a diamond.
    return rng.uniform(-10.0, 10.0) if kind != "diamond" else rng.uniform(-6.0, 6.0)


def _place_circles(rng: Random, width: int, height: int, count: int) -> list[tuple[Point, float, str]] | None:
    """Centre, radius and size word of `count` circles which fit; None when this draw of sizes does not."""
    placed: list[tuple[Point, float, str]] = []
    for _ in range(count):
        size = rng.choice(("small", "large"))
        radius = _pick_radius(rng, min(width, height), size, count)
        for _ in range(40):
            center = (rng.uniform(radius + 1, width - radius - 1), rng.uniform(radius + 1, height - radius - 1))
            if all(_stands_apart(center, radius, other, width, height) for other in placed):
                placed.append((center, radius, size))
                break
        else:
            return None
    return placed


def _pick_radius(rng: Random, short_side: int, size: str, count: int) -> float:
    if size == "small":
        diameter = rng.uniform(max(MIN_DIAMETER, 0.17 * short_side), max(MIN_DIAMETER + 2, 0.28 * short_side))
    else:
        widest = 0.88 if count == 1 else 0.62 if count == 2 else 0.48
        diameter = rng.uniform(0.40 * short_side, widest * short_side)
    return diameter / 2


def _stands_apart(center: Point, radius: float, other: tuple[Point, float, str], width: int, height: int) -> bool:
    other_center, other_radius, _ = other
    gap = max(2.0, 0.02 * min(width, height))
    axis = 0 if width >= height else 1
    # Reading order must be plain to see, so two centres may not be level along the longer side.
    in_order = abs(center[axis] - other_center[axis]) >= 0.05 * max(width, height)
    return in_order and math.dist(center, other_center) >= radius + other_radius + gap


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture, its edges anti-aliased by drawing each shape enlarged."""
    image = Image.new("RGB", (scene.width, scene.height), scene.background_rgb)
    for shape in scene.shapes:
        left, top = int(shape.center[0] - shape.radius) - 1, int(shape.center[1] - shape.radius) - 1
        side = 2 * math.ceil(shape.radius) + 3
        mask = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING), 0)
        center = ((shape.center[0] - left) * SUPERSAMPLING, (shape.center[1] - top) * SUPERSAMPLING)
        outline = [_turned(point, center, shape.radius * SUPERSAMPLING, shape.angle) for point in _outline(shape.kind)]
        ImageDraw.Draw(mask).polygon(outline, fill=255)
        image.paste(shape.rgb, (left, top), mask.reduce(SUPERSAMPLING))
    return image


def _turned(point: Point, center: Point, scale: float, degrees: float) -> Point:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (
        center[0] + scale * (point[0] * cos - point[1] * sin),
        center[1] + scale * (point[0] * sin + point[1] * cos),
    )


def _outline(kind: str) -> Sequence[Point]:
    """The outline in a circle of radius 1 around the origin, y pointing down."""
    if kind == "circle":
        return _ring([1.0] * 64)
    if kind == "square":
        return _ring([1.0] * 4, start=45.0)
    if kind == "triangle":
        return _ring([1.0] * 3, start=-90.0)
    if kind == "star":
        return _ring([1.0, 0.42] * 5, start=-90.0)
    if kind == "diamond":
        return ((0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0))
    if kind == "heart":
        return [_heart_point(2 * math.pi * step / 64) for step in range(64)]
    raise ValueError(f"There is no shape called {kind!r}; the shapes are {', '.join(SHAPE_KINDS)}.")


def _ring(radii: Sequence[float], start: float = 0.0) -> list[Point]:
    angles = [math.radians(start + 360.0 * index / len(radii)) for index in range(len(radii))]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


def _heart_point(t: float) -> Point:
    x = 16 * math.sin(t) ** 3
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return x / 17.0, -(y + 2.5) / 17.0


def encode_png(image: Image.Image) -> bytes:
    """The picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def encode_jpeg(image: Image.Image, rng: Random) -> bytes:
    """The picture as a JPEG file's bytes, of a quality that is seen in the wild."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(70, 96))
    return buffer.getvalue()
