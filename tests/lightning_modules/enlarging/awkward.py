"""Awkward photographs, and what must come out of each."""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from tests.datamodules.trees import DISPLAY_P3, fixed, icc_profile, picture

IPTC = b"\x1c\x02\x05\x00\x07Harbour"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a xmlns="b"/></x:xmpmeta>'


@dataclass(frozen=True)
class Expected:
    """What the result of a photograph of 32x24 pixels must be.

    Attributes:
        size: Of the result.
        mode: Of the result, as Pillow opens it.
        bits: Of a channel.
        profile: The colour profile it must have.
        tolerance: How many grey levels of 8 bits the colours may differ from those that went in.
        failure: What must be said instead of a result.
        said: What must be said besides.
    """

    size: tuple[int, int] = (64, 48)
    mode: str = "RGB"
    bits: int = 8
    profile: bytes | None = None
    tolerance: int = 0
    failure: str = ""
    said: str = ""


def grey_profile() -> bytes:
    """An ICC profile for grey with a gamma of 1.8."""
    return icc_profile(b"GRAY", {b"kTRC": b"para" + struct.pack(">4xHH", 0, 0) + fixed(1.8)})


def exif(orientation: int = 1) -> Image.Exif:
    made = Image.Exif()
    made[0x0112], made[0x010F], made[0x0132] = orientation, "Camera", "2020:01:02 03:04:05"
    made.get_ifd(0x8769).update({0x829A: 0.008, 0x9003: "2020:01:02 03:04:05", 0xA002: 32, 0xA003: 24})
    made.get_ifd(0x8825).update({1: "N", 2: (48.0, 1.0, 2.0)})
    return made


def photoshop(iptc: bytes) -> bytes:
    """The segment of a JPEG that holds an IPTC record."""
    content = b"Photoshop 3.0\x008BIM" + struct.pack(">HHI", 0x0404, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    return b"\xff\xed" + struct.pack(">H", 2 + len(content)) + content


def deep(channels: int = 3) -> np.ndarray:
    """Smooth pixels of 16 bits whose lower eight are not those of 8-bit ones."""
    rows, columns = np.mgrid[0:24, 0:32]
    made = np.stack(
        [rows * 2000 + 77, columns * 1900 + 5, (rows + columns) * 1000 + 333, columns * 2000 + 111], axis=-1
    )
    return made[..., :channels].astype(np.uint16)


def alpha() -> Image.Image:
    """Opaque at the left, not seen at the right."""
    return Image.fromarray(np.tile(np.linspace(255, 0, 32).round().astype(np.uint8), (24, 1)))


def plain(path: Path) -> None:
    picture(0).save(path, exif=exif(), xmp=XMP, dpi=(300, 300), extra=photoshop(IPTC), quality=95)


def rotated(path: Path) -> None:
    picture(1).save(path, exif=exif(6), quality=95)


def transparent(path: Path) -> None:
    image = picture(2).convert("RGBA")
    image.putalpha(alpha())
    image.save(path)


def grey_transparent(path: Path) -> None:
    image = picture(3).convert("L").convert("LA")
    image.putalpha(alpha())
    image.save(path)


def palette(path: Path) -> None:
    image = picture(4).quantize(16)
    image.save(path, transparency=image.getpixel((0, 0)))


def mirrored_deep(path: Path) -> None:
    beside = path.with_name("beside.png")
    Image.new("L", (1, 1)).save(beside, exif=exif(5))
    content = beside.read_bytes()
    beside.unlink()
    place = content.index(b"eXIf") - 4
    (length,) = struct.unpack(">I", content[place : place + 4])
    pixels = bytes(imagecodecs.png_encode(deep()))
    path.write_bytes(pixels[:33] + content[place : place + 12 + length] + pixels[33:])


def pages(path: Path) -> None:
    picture(5).save(path, save_all=True, append_images=[picture(6), picture(7)])


def animated(path: Path) -> None:
    frames = [picture(seed).quantize(32) for seed in (8, 9)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def truncated(path: Path) -> None:
    picture(0, 200, 200).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:2000])


def wrong_extension(path: Path) -> None:
    picture(10).save(path, format="JPEG", quality=95)


def folder(path: Path) -> None:
    path.mkdir()
    picture(11).save(path / "inside.png")


def large(path: Path) -> None:
    picture(12, 300, 420).save(path)


LATIN = os.fsdecode(b"caf\xe9.png")
AWKWARD: dict[str, tuple[Callable[[Path], object], Expected]] = {
    "plain.jpg": (plain, Expected()),
    "p3.jpg": (
        lambda path: picture(0).save(path, icc_profile=DISPLAY_P3, quality=95),
        Expected(profile=DISPLAY_P3, tolerance=14),  # what is beyond sRGB is interpolated, not repeated
    ),
    "rotated.jpg": (rotated, Expected((48, 64))),
    "grey.png": (lambda path: picture(1).convert("L").save(path, dpi=(72, 96)), Expected(mode="L")),
    "grey-profile.jpg": (
        lambda path: picture(1).convert("L").save(path, icc_profile=grey_profile(), quality=95),
        Expected(mode="L", profile=grey_profile(), tolerance=2),
    ),
    "grey-16.png": (
        lambda path: Image.fromarray(deep(1)[..., 0]).save(path),
        Expected(mode="I;16", bits=16),
    ),
    "rgb-16.png": (lambda path: path.write_bytes(imagecodecs.png_encode(deep())), Expected(bits=16)),
    "rgba-16.png": (
        lambda path: path.write_bytes(imagecodecs.png_encode(deep(4))),
        Expected(mode="RGBA", bits=16),
    ),
    "mirrored-16.png": (mirrored_deep, Expected((48, 64), bits=16)),
    "p3-16.tif": (
        lambda path: tifffile.imwrite(path, deep(), photometric="rgb", iccprofile=DISPLAY_P3, resolution=(240, 240)),
        Expected(bits=16, profile=DISPLAY_P3, tolerance=8),
    ),
    "planar-16.tif": (
        lambda path: tifffile.imwrite(
            path, np.moveaxis(deep(), -1, 0).copy(), photometric="rgb", planarconfig="separate", compression="lzw"
        ),
        Expected(bits=16),
    ),
    "alpha.png": (transparent, Expected(mode="RGBA")),
    "alpha.webp": (transparent, Expected(mode="RGBA")),
    "grey-alpha.png": (grey_transparent, Expected(mode="LA")),
    "palette.png": (palette, Expected(mode="RGBA")),
    "cmyk.jpg": (lambda path: picture(2).convert("CMYK").save(path, quality=95), Expected()),
    "one-bit.png": (lambda path: picture(3).convert("1").save(path), Expected(mode="L")),
    "one-pixel.png": (lambda path: picture(4, 1, 1).save(path), Expected((2, 2))),
    "tiny.bmp": (lambda path: picture(5, 5, 3).save(path), Expected((6, 10))),
    "pages.tif": (pages, Expected(said="pages.tif: holds 3 pages or frames; only the first is read")),
    "animated.gif": (animated, Expected(said="animated.gif: holds 2 pages or frames; only the first is read")),
    "jpeg-called.png": (wrong_extension, Expected()),
    "large.png": (large, Expected((840, 600))),
    LATIN: (lambda path: picture(6).save(path), Expected()),
    "folder.png": (folder, Expected()),
    "garbage.png": (
        lambda path: path.write_bytes(b"not a picture at all"),
        Expected(failure="garbage.png: not an image that can be read"),
    ),
    "truncated.jpg": (truncated, Expected(failure="truncated.jpg: image file is truncated")),
    "empty.jpg": (lambda path: path.write_bytes(b""), Expected(failure="empty.jpg: zero bytes")),
    "floats.tif": (
        lambda path: tifffile.imwrite(path, np.zeros((4, 4), np.float32)),
        Expected(failure="floats.tif: floating-point pixels have no fixed white"),
    ),
}


def make(root: Path) -> None:
    """All of them in a folder, beside files that are to be passed over."""
    root.mkdir()
    for name, (write, _) in AWKWARD.items():
        write(root / name)
    for name in ("phone.heic", "camera.cr2", "notes.txt"):
        (root / name).write_bytes(b"something")
