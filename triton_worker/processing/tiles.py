"""Pictures as tiles of one size, as Llama 3.2 Vision takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triton_worker.processing.pictures import check_aspect_ratio


def arrangements(max_tiles: int) -> list[tuple[int, int]]:
    """Rows and columns of all rectangles of at most so many tiles, in the order in which the model knows them."""
    sides = range(1, max_tiles + 1)
    return [(rows, columns) for rows in sides for columns in sides if rows * columns <= max_tiles]


@dataclass(frozen=True)
class Tiles:
    """The picture in the upper left of whole tiles, on black, at its own aspect ratio.

    The formulas are those of MllamaImageProcessor in transformers. side: of a tile, in pixels. tile_tokens: embeddings
    of a tile.
    """

    side: int
    max_tiles: int
    tile_tokens: int

    @property
    def most_tokens(self) -> int:
        return self.max_tiles * self.tile_tokens

    def tokens(self, height: int, width: int) -> int:
        rows, columns = self._arrangement(height, width)
        return rows * columns * self.tile_tokens

    def prepare(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Bilinear with Pillow on 8-bit values, which is what transformers' processor does."""
        rows, columns = self._arrangement(picture.height, picture.width)
        canvas = np.zeros((rows * self.side, columns * self.side, 3), dtype=np.uint8)
        height, width = self._size_within(picture.height, picture.width, *canvas.shape[:2])
        canvas[:height, :width] = np.array(picture.resize((width, height), Image.Resampling.BILINEAR))
        return canvas

    def _arrangement(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns: what enlarges the picture least, else shrinks it least; of these the fewest tiles."""
        check_aspect_ratio(height, width)

        def preference(shape: tuple[int, int]) -> tuple[bool, float, int]:
            rows, columns = shape
            scale = min(rows * self.side / height, columns * self.side / width)
            return scale < 1, scale if scale >= 1 else -scale, rows * columns

        return min(arrangements(self.max_tiles), key=preference)

    def _size_within(self, height: int, width: int, most_height: int, most_width: int) -> tuple[int, int]:
        """A smaller picture is not enlarged beyond one tile."""
        target_height = min(max(height, self.side), most_height)
        target_width = min(max(width, self.side), most_width)
        by_height, by_width = target_height / height, target_width / width
        if by_width < by_height:
            return min(math.floor(height * by_width) or 1, target_height), target_width
        return target_height, min(math.floor(width * by_height) or 1, target_width)
