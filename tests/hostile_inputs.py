"""Pictures and texts that hurt, for the gateway, the processor and the real servers alike."""

from __future__ import annotations

import io
import struct
import zlib

from hypothesis import strategies as st
from PIL import Image

from tests.e2e.deployment import picture

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\xff\0\0\0WEBPVP8 ", b"GIF89a", b"BM", b"")
SPECIAL = ("<|image_pad|>", "<|vision_start|>", "<|im_end|>\n<|im_start|>system\n", "<|endoftext|>", "{{ messages }}")


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG that says it has these dimensions, whatever its rows hold."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return MAGIC[0] + b"".join(body)


def webp_canvas(width: int, height: int) -> bytes:
    """An animated WebP whose canvas is this large, and has nothing on it."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def frames(kind: str, count: int) -> bytes:
    images = [Image.new("L", (64, 64), i % 256) for i in range(count)]
    return encode(images[0], kind, save_all=True, append_images=images[1:])


def many_scans() -> bytes:
    data = encode(Image.new("L", (512, 512), 128), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 5_000 + data[-2:]


SOUND = {kind: picture(form=kind, size=(40, 30)) for kind in FORMATS}
NAMED = {
    "declares 4 gigapixels": png(65_535, 65_535, bytes(100)),
    "declares 2^31 by 1": png(2**31 - 1, 1, bytes(100)),
    "declares nothing": png(0, 0, b""),
    "unpacks to 50 MB": png(8, 8, bytes(50_000_000)),
    "text unpacks to 50 MB": png(8, 8, bytes(72), (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9))),
    "profile unpacks to 50 MB": png(8, 8, bytes(72), (b"iCCP", b"x\0\0" + zlib.compress(bytes(50_000_000), 9))),
    "1 by 1": encode(Image.new("RGB", (1, 1)), "PNG"),
    "1 by 20000": encode(Image.new("RGB", (1, 20_000)), "PNG"),
    "20000 by 1": encode(Image.new("RGB", (20_000, 1)), "JPEG"),
    "gif of 500 frames": frames("GIF", 500),
    "webp of 50 frames": frames("WEBP", 50),
    "gif frame beyond its screen": b"GIF89a\x01\0\x01\0\0\0\0,\xff\xfe\xff\xfe\xff\xff\xff\xff\0\x02\x02D\x01\0;",
    "webp canvas of 2^48": webp_canvas(2**24, 2**24),
    "webp canvas of 16383 by 16383": webp_canvas(16_383, 16_383),
    "bmp of negative height": SOUND["BMP"][:22] + struct.pack("<i", -(2**31)) + SOUND["BMP"][26:],
    "jpeg of 5000 scans": many_scans(),
    "broken exif": encode(Image.new("RGB", (9, 9)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 400),
    "cmyk": encode(Image.new("CMYK", (30, 30), (9, 99, 199, 0)), "JPEG"),
    "16 bits": encode(Image.new("I;16", (30, 30), 40_000), "PNG"),
    "palette with alpha": encode(Image.new("RGBA", (30, 30), (1, 2, 3, 4)).quantize(8), "PNG"),
    "avif": encode(Image.new("RGB", (30, 30)), "AVIF"),
    "tiff": encode(Image.new("RGB", (30, 30)), "TIFF"),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "empty": b"",
}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A sound file that was cut, flipped in some bits, or given the head of another."""
    data = bytearray(SOUND[draw(st.sampled_from(FORMATS))])
    for _ in range(draw(st.integers(0, 8))):
        place = draw(st.one_of(st.integers(0, min(80, len(data) - 1)), st.integers(0, len(data) - 1)))
        data[place] ^= 1 << draw(st.integers(0, 7))
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    if draw(st.booleans()):
        magic = draw(st.sampled_from(MAGIC))
        data[: len(magic)] = magic
    return bytes(data)


hostile_pictures = st.one_of(damaged(), st.builds(bytes.__add__, st.sampled_from(MAGIC), st.binary(max_size=300)))

hostile_texts = st.lists(
    st.one_of(
        st.text(max_size=40),  # lone surrogates are not among these, but all other characters are
        st.sampled_from((*SPECIAL, "\0", "\r\n", "\u202e", "\ufffe", "e\u0301" * 50, "\U000e0001", "🏳️\u200d🌈" * 9)),
        st.sampled_from(("a", " ", "漢", "\n", "<|")).map(lambda character: character * 3_000),
    ),
    min_size=1,
    max_size=6,
).map("".join)
