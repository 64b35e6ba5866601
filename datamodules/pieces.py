"""Samples to pack: which part of which file, at which size, and its bytes."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from datamodules.images import ImageError, Pixels, decode, transparent

_KEPT = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}  # formats whose bytes go into the shard as they are
_ORIENTATION = 0x0112  # EXIF: values from 5 on swap width and height

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class View:
    """What is taken from a file: all of it or a box, resized to a square by Pillow if `side` is given."""

    path: Path
    box: Box | None = None
    side: int | None = None
    resample: Literal["bicubic", "bilinear"] = "bicubic"


@dataclass(frozen=True)
class Piece:
    """One sample to pack; the key has no dots."""

    key: str
    hr: View
    lr: View | None = None


def tiles(width: int, height: int, crop: int, step: int, grid: int = 1) -> Iterator[Box]:
    """Overlapping squares that cover an image, row by row; the last of a row or column ends at the border.

    Args:
        width: of the image, pixels.
        height: of the image, pixels.
        crop: side of the squares, not more than the image's.
        step: between neighbours, a multiple of `grid`.
        grid: all offsets are multiples of it; the image is cut to a multiple first.
    """
    for top in _starts(height - height % grid, crop, step):
        for left in _starts(width - width % grid, crop, step):
            yield left, top, left + crop, top + crop


def _starts(length: int, crop: int, step: int) -> list[int]:
    starts = list(range(0, length - crop + 1, step))
    return starts if starts[-1] == length - crop else [*starts, length - crop]


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as the image will be decoded, from its header.

    Raises:
        ImageError: not an image.
    """
    try:
        with Image.open(path) as image:
            return (image.height, image.width) if _turned(image) else (image.width, image.height)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: {'not an image' if path.stat().st_size else 'zero bytes'}") from error


def _turned(image: Image.Image) -> bool:
    if image.format == "PNG" and "exif" not in image.info:
        return False  # Pillow would decode the whole image to look for a later chunk
    return bool(image.getexif().get(_ORIENTATION, 1) >= 5)


def encoded(view: View) -> tuple[str, bytes]:
    """Suffix and bytes: those of the file if it is a whole opaque image in a usual format, else a new PNG.

    Raises:
        ImageError: the file is no readable image.
    """
    pixels = _decode(view.path)
    if view.box is None and view.side in (None, *_square(pixels)):
        with Image.open(view.path) as image:
            if image.format in _KEPT and not transparent(image):
                return _KEPT[image.format], view.path.read_bytes()
    part = Image.fromarray(pixels).crop(view.box) if view.box else Image.fromarray(pixels)
    if view.side is not None:
        part = part.resize((view.side, view.side), Image.Resampling[view.resample.upper()])
    content = io.BytesIO()
    part.save(content, "PNG", compress_level=3)
    return "png", content.getvalue()


def _square(pixels: Pixels) -> list[int]:
    height, width = pixels.shape[:2]
    return [height] if height == width else []


@lru_cache(maxsize=2)
def _decode(path: Path) -> Pixels:
    return decode(path, str(path))
