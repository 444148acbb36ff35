from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as their_smart_resize

from triton_worker.models.qwen_vl.config import VisionConfig
from triton_worker.models.qwen_vl.vision import PatchEmbedding
from triton_worker.processing.pictures import (
    PictureError,
    PictureLimits,
    ResizeBounds,
    decode_picture,
    resize_picture,
    smart_resize,
)

LIMITS = PictureLimits()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth noise: random blocks with a gradient, so that lossy formats keep it close."""
    generator = np.random.default_rng(seed)
    shape = (height, width, channels)
    return (generator.integers(0, 128, shape) + np.linspace(0, 127, width)[None, :, None]).astype(np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int, *, bits: int = 8, rows: bytes = bytes(100)) -> bytes:
    """An RGB PNG of these dimensions, with no pixel data to speak of unless there are ``rows``."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_decode_to_the_same_pixels(kind: str) -> None:
    pixels = noise(20, 31)
    decoded = decode_picture(encode(Image.fromarray(pixels), kind, lossless=True), LIMITS)
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(decoded, pixels)


def test_jpeg_decodes_as_pillow_does() -> None:
    data = encode(Image.fromarray(noise(33, 47)), "JPEG", quality=80)
    np.testing.assert_array_equal(decode_picture(data, LIMITS), np.array(Image.open(io.BytesIO(data))))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    for kind in ("GIF", "WEBP"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_picture(data, LIMITS).getpixel((0, 0)) == (255, 0, 0)


def modes() -> dict[str, Image.Image]:
    rgba = Image.fromarray(noise(9, 12, 4), "RGBA")
    palette_with_hole = Image.fromarray(noise(9, 12)).quantize(16)
    palette_with_hole.info["transparency"] = 3
    return {
        "RGBA": rgba,
        "LA": rgba.convert("LA"),
        "L": rgba.convert("L"),
        "1": rgba.convert("1"),
        "P": Image.fromarray(noise(9, 12)).quantize(32),
        "P with transparency": palette_with_hole,
    }


def files() -> dict[str, bytes]:
    colours = Image.fromarray(noise(16, 16))
    with_key = Image.fromarray(noise(9, 12))
    return {
        **{f"PNG {name}": encode(image) for name, image in modes().items()},
        "PNG RGB with a transparent colour": encode(with_key, transparency=with_key.getpixel((3, 3))),
        "PNG RGB of 16 bits": rgb_png_of_16_bits(),
        "GIF": encode(colours.quantize(32), "GIF"),
        "GIF with transparency": encode(modes()["P with transparency"], "GIF", transparency=3),
        "WEBP with alpha": encode(modes()["RGBA"], "WEBP", lossless=True),
        "BMP of 1 bit": encode(colours.convert("1"), "BMP"),
        "BMP with a palette": encode(colours.quantize(32), "BMP"),
        "JPEG L": encode(colours.convert("L"), "JPEG"),
        "JPEG CMYK": encode(colours.convert("CMYK"), "JPEG"),
        "JPEG progressive": encode(colours, "JPEG", progressive=True),
        "JPEG MPO": encode(colours, "MPO", save_all=True, append_images=[colours.rotate(90)]),
    }


def rgb_png_of_16_bits() -> bytes:
    shades = np.random.default_rng(3).integers(0, 2**16, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in shades)
    return png_header(7, 5, bits=16, rows=rows)


FILES = files()


@pytest.mark.parametrize("name", list(FILES))
def test_colour_modes_become_rgb_as_in_transformers(name: str) -> None:
    data = FILES[name]
    theirs = np.array(Qwen2VLImageProcessorPil().convert_to_rgb(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode_picture(data, LIMITS), theirs)


def test_sixteen_bit_greys_keep_their_shades() -> None:
    """Pillow, and transformers with it, would turn all of them but the darkest white."""
    shades = np.array([[0, 0x1234, 0x8000, 0xFFFF]], dtype=np.uint16).repeat(4, axis=0)
    decoded = decode_picture(encode(Image.fromarray(shades)), LIMITS)
    assert np.array(decoded)[0].tolist() == [[0] * 3, [0x12] * 3, [0x80] * 3, [0xFF] * 3]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    image = Image.fromarray(noise(10, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, "PNG", exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode_picture(data, LIMITS), expected)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0" + b"\xff" * 40,
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
    ],
)
def test_malformed_exif_is_passed_over(exif: bytes) -> None:
    pixels = noise(12, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("PNG", "JPEG"):
            assert decode_picture(encode(Image.fromarray(pixels), kind, exif=exif), LIMITS).size == (9, 12)


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_by_the_header(width: int, height: int) -> None:
    with pytest.raises(PictureError, match=r"more than 50,000,000 pixels"):
        decode_picture(png_header(width, height), LIMITS)


def test_the_pixel_limit_is_inclusive() -> None:
    data = encode(Image.fromarray(noise(10, 10)))
    assert decode_picture(data, PictureLimits(max_pixels_decoded=100)).size == (10, 10)
    with pytest.raises(PictureError, match="more than 99 pixels"):
        decode_picture(data, PictureLimits(max_pixels_decoded=99))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_truncated_pictures_are_refused_in_our_words(kind: str) -> None:
    data = encode(Image.fromarray(noise(64, 64)), kind)
    for length in (len(data) // 2, len(data) // 10, 10, 3):
        with pytest.raises(PictureError, match=r"^The (picture is truncated or damaged|data is not a PNG)"):
            decode_picture(data[:length], LIMITS)


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "PCX", "TGA", "PDF", "EPS", "AVIF", "JPEG2000"])
def test_other_formats_are_refused(kind: str) -> None:
    data = encode(Image.fromarray(noise(32, 32)), kind)
    with pytest.raises(PictureError, match="not a PNG, JPEG, WEBP, GIF or BMP"):
        decode_picture(data, LIMITS)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    """Each costs 75 bytes in the file and a pass over all pixels, in C code that no thread can interrupt."""
    data = encode(Image.new("L", (2000, 2000), 128), "JPEG", progressive=True, quality=30)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode_picture(data[:-2] + scan * 20 + data[-2:], LIMITS).size == (2000, 2000)
    with pytest.raises(PictureError, match="more than 100 scans"):
        decode_picture(data[:-2] + scan * 10_000 + data[-2:], LIMITS)


def test_heic_is_refused() -> None:
    with pytest.raises(PictureError, match="not a PNG"):
        decode_picture(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), LIMITS)


@pytest.mark.parametrize("data", [b"", b"\0" * 1000, b"<svg/>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"])
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(PictureError):
        decode_picture(data, LIMITS)


def test_damaged_bytes_never_raise_anything_else() -> None:
    generator = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
            sound = encode(Image.fromarray(noise(24, 24)), kind)
            for _ in range(60):
                data = bytearray(sound)
                for place in generator.integers(0, len(data), 4):
                    data[place] = generator.integers(0, 256)
                with contextlib.suppress(PictureError):
                    decode_picture(bytes(data), PictureLimits(max_pixels_decoded=10**6))


BOUNDS = [ResizeBounds(), ResizeBounds(max_pixels=28 * 28 * 16), ResizeBounds(min_pixels=200_000, max_pixels=300_000)]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_smart_resize_equals_transformers(bounds: ResizeBounds) -> None:
    generator = np.random.default_rng(1)
    sizes = [(1, 1), (1, 200), (14, 42), (28, 28), (27, 29), (5000, 30), (3000, 4000)]
    sizes += [tuple(size) for size in generator.integers(20, 3000, (300, 2)).tolist()]
    for height, width in sizes:
        if max(height, width) > 200 * min(height, width):
            continue
        expected = their_smart_resize(height, width, 28, bounds.min_pixels, bounds.max_pixels)
        assert smart_resize(height, width, 28, bounds.min_pixels, bounds.max_pixels) == expected


@pytest.mark.parametrize(("height", "width"), [(1, 201), (4001, 20)])
def test_extreme_aspect_ratios_are_refused(height: int, width: int) -> None:
    with pytest.raises(PictureError, match="200 times"):
        resize_picture(Image.fromarray(noise(height, width)), ResizeBounds())


@pytest.mark.parametrize(("low", "high"), [(0, 10), (10, 9), (-1, -1)])
def test_bounds_that_no_picture_meets_are_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="min_pixels"):
        ResizeBounds(low, high)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize(("height", "width"), [(28, 56), (61, 47), (300, 113), (1, 1), (640, 480), (5, 900)])
def test_patches_equal_those_of_transformers(height: int, width: int, bounds: ResizeBounds) -> None:
    picture = Image.fromarray(noise(height, width))
    size = {"shortest_edge": bounds.min_pixels, "longest_edge": bounds.max_pixels}
    theirs = Qwen2VLImageProcessorPil(size=size)(picture, return_tensors="pt")
    resized = resize_picture(picture, bounds)
    assert resized.dtype == np.uint8
    assert resized.flags["C_CONTIGUOUS"]
    assert resized.flags["WRITEABLE"]
    assert theirs["image_grid_thw"].tolist() == [[1, resized.shape[0] // 14, resized.shape[1] // 14]]
    config = VisionConfig(num_layers=1, hidden_size=16, num_heads=1, intermediate_size=16)
    embedding = PatchEmbedding(config, dtype=torch.float32, device=torch.device("cpu"))
    patches = embedding._patches(torch.from_numpy(resized)).flatten(0, 1)
    torch.testing.assert_close(patches, theirs["pixel_values"], atol=1e-6, rtol=0)
