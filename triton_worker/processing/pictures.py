"""From the bytes of a picture file to the pixels that the vision tower takes."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from protocol.pictures import FORMATS_IN_WORDS, MAX_PICTURE_PIXELS, picture_format

_MAX_ASPECT_RATIO = 200  # as transformers' smart_resize

_SCAN = b"\xff\xda"  # JPEG's Start of Scan, ITU T.81, table B.1: never a part of compressed data
_MAX_SCANS = 100
"""Progressive files have about ten. libjpeg passes over all pixels for each, and one of 75 bytes is enough for that."""

_UPRIGHT_BY_ORIENTATION = {  # EXIF 2.32, tag 0x0112
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(Exception):
    """A picture that cannot be taken. The message is a sentence for the caller who sent it."""


class PictureBoundsError(Exception):
    """Bounds on a picture's size that cannot be; the message names the flags."""


@dataclass(frozen=True)
class PictureLimits:
    """max_pixels_decoded: most pixels, width times height, that a file may unpack to.

    The default takes pictures of cameras of 50 megapixels, and bounds what one picture takes while it is decoded to
    about a gigabyte.
    """

    max_pixels_decoded: int = MAX_PICTURE_PIXELS


@dataclass(frozen=True)
class ResizeBounds:
    """Fewest and most pixels, width times height, of a resized picture; by default those of Qwen2-VL's processor."""

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280

    def __post_init__(self) -> None:
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise ValueError(f"1 <= min_pixels <= max_pixels does not hold for {self.min_pixels} and {self.max_pixels}")


REFERENCE_BOUNDS = ResizeBounds(min_pixels=16 * 28 * 28, max_pixels=64 * 28 * 28)
"""What NeMo Export-Deploy 0.3 gives its processor, whatever the model."""


class PicturePreparation(Protocol):
    """How a family's pictures come to the size that its vision tower takes."""

    @property
    def most_tokens(self) -> int:
        """How many embeddings a picture has at most."""
        ...

    def tokens(self, height: int, width: int) -> int:
        """How many embeddings a picture of this size will have. Raises PictureError for one that cannot be taken."""
        ...

    def prepare(self, picture: Image.Image) -> NDArray[np.uint8]:
        """An RGB picture -> uint8 [height, width, 3] in the size that the model takes. Raises PictureError as above."""
        ...


@dataclass(frozen=True)
class SmartResize:
    """Qwen2-VL's and Qwen2.5-VL's: nearly the picture's own size. `unit`: pixels a side of what one embedding sees."""

    bounds: ResizeBounds = field(default_factory=ResizeBounds)
    unit: int = 28

    @property
    def most_tokens(self) -> int:
        return max(1, self.bounds.max_pixels // self.unit**2)

    def tokens(self, height: int, width: int) -> int:
        bounds = self.bounds
        height, width = smart_resize(height, width, self.unit, bounds.min_pixels, bounds.max_pixels)
        return height // self.unit * (width // self.unit)

    def prepare(self, picture: Image.Image) -> NDArray[np.uint8]:
        return resize_picture(picture, self.bounds, self.unit)


@dataclass(frozen=True)
class CentreCrop:
    """CLIP's: the shorter side becomes `side` pixels, and of the longer one the middle is kept."""

    side: int
    unit: int

    @property
    def most_tokens(self) -> int:
        return (self.side // self.unit) ** 2

    def tokens(self, height: int, width: int) -> int:
        check_aspect_ratio(height, width)
        return self.most_tokens

    def prepare(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Bicubic with Pillow on 8-bit values, rounded down, which is what transformers' processor does."""
        width, height = picture.size
        check_aspect_ratio(height, width)
        shorter = min(height, width)
        new_height, new_width = (int(self.side * length / shorter) for length in (height, width))
        image = picture.resize((new_width, new_height), Image.Resampling.BICUBIC)
        top, left = (new_height - self.side) // 2, (new_width - self.side) // 2
        return np.array(image)[top : top + self.side, left : left + self.side].copy()


def picture_size(data: bytes, limits: PictureLimits) -> tuple[int, int]:
    """Height and width out of the header, before orientation is applied. Nothing is unpacked. Raises PictureError."""
    with _open(data, limits) as image:
        return image.height, image.width


def decode_picture(data: bytes, limits: PictureLimits) -> Image.Image:
    """The first frame of an encoded picture, upright, on white where it is transparent, in RGB.

    The size in the header is checked before anything is unpacked. Raises PictureError.
    """
    with _open(data, limits) as image:
        try:
            return _rgb(_upright(image))
        except Image.DecompressionBombError:
            raise _too_large(limits) from None
        except Exception:  # Pillow's decoders raise many types on bytes they cannot read.
            raise _damaged() from None


def _open(data: bytes, limits: PictureLimits) -> Image.Image:
    kind = picture_format(data)
    if kind is None:
        raise PictureError(f"The data is not a {FORMATS_IN_WORDS} picture.")
    if kind == "JPEG" and data.count(_SCAN) > _MAX_SCANS:
        raise PictureError(f"The picture has more than {_MAX_SCANS} scans.")
    try:
        image = Image.open(io.BytesIO(data), formats=[kind])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # The latter under -W error.
        raise _too_large(limits) from None
    except Exception:  # As above, now from the readers of headers.
        raise _damaged() from None
    if image.width * image.height > limits.max_pixels_decoded:
        raise _too_large(limits)
    return image


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width in multiples of `factor` whose product lies within the bounds, at nearly the same aspect ratio.

    The formula is that of Qwen2-VL's image processor. Raises PictureError for an aspect ratio above 200.
    """
    check_aspect_ratio(height, width)
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def resize_picture(picture: Image.Image, bounds: ResizeBounds, unit: int = 28) -> NDArray[np.uint8]:
    """RGB -> uint8 [height, width, 3], sides in multiples of `unit` and within `bounds`. Raises PictureError.

    Bicubic with Pillow on 8-bit values, which is what transformers' processor does.
    """
    width, height = picture.size
    new_height, new_width = smart_resize(height, width, unit, bounds.min_pixels, bounds.max_pixels)
    return np.array(picture.resize((new_width, new_height), Image.Resampling.BICUBIC))


def check_aspect_ratio(height: int, width: int) -> None:
    """Raise PictureError for a picture that is all length."""
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise PictureError(f"One side of the picture is more than {_MAX_ASPECT_RATIO} times as long as the other.")


def _upright(image: Image.Image) -> Image.Image:
    """The decoded image, turned as its EXIF orientation asks. Unreadable EXIF counts as none."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # The EXIF parser raises many types; what it describes is not worth a refusal.
        orientation = None
    method = _UPRIGHT_BY_ORIENTATION.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip 16-bit greys at 255, which leaves nearly all of them white; keep the high byte instead.
        grey = (np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8)
        image = Image.fromarray(grey)
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _damaged() -> PictureError:
    return PictureError("The picture is truncated or damaged.")


def _too_large(limits: PictureLimits) -> PictureError:
    return PictureError(f"The picture has more than {limits.max_pixels_decoded:,} pixels.")
