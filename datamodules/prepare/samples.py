"""What is to be packed: which part of which image file makes a sample, at which size, and its encoded bytes."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image

from datamodules.images import Pixels, decode, storable_suffix

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class PlannedImage:
    """What is taken from an image file: all of it or a box, resized to a square by Pillow if `side` is given.

    Attributes:
        path: the file.
        box: left, top, right and bottom in pixels; None takes the whole image.
        side: height and width of the result in pixels; None keeps the size.
        resample: Pillow's filter for the resizing.
    """

    path: Path
    box: Box | None = None
    side: int | None = None
    resample: Literal["bicubic", "bilinear"] = "bicubic"


@dataclass(frozen=True)
class PlannedSample:
    """One sample to pack; its key has no dots, since a shard separates key and role by one."""

    key: str
    hr: PlannedImage
    lr: PlannedImage | None = None


def tiles(width: int, height: int, crop: int, step: int, grid: int = 1) -> Iterator[Box]:
    """Overlapping squares that cover an image, row by row; the last of a row or column ends at the border.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        crop: side of the squares, at most that of the image.
        step: between neighbours, a multiple of `grid`.
        grid: all offsets are multiples of it; the image is first cut to a multiple of it.
    """
    for top in _offsets(height - height % grid, crop, step):
        for left in _offsets(width - width % grid, crop, step):
            yield left, top, left + crop, top + crop


def _offsets(length: int, crop: int, step: int) -> list[int]:
    offsets = list(range(0, length - crop + 1, step))
    return offsets if offsets[-1] == length - crop else [*offsets, length - crop]


def encode(image: PlannedImage) -> tuple[str, bytes]:
    """Suffix and bytes: those of the file if it is a whole opaque image in a usual format, else a new PNG.

    Raises:
        ImageError: the file is not a readable image.
    """
    pixels = _decode_file(image.path)

    if image.box is None and image.side in (None, *_side_of_square(pixels)):
        suffix = storable_suffix(image.path)
        if suffix is not None:
            return suffix, image.path.read_bytes()

    part = Image.fromarray(pixels).crop(image.box) if image.box else Image.fromarray(pixels)
    if image.side is not None:
        part = part.resize((image.side, image.side), Image.Resampling[image.resample.upper()])
    content = io.BytesIO()
    part.save(content, "PNG", compress_level=3)
    return "png", content.getvalue()


def _side_of_square(pixels: Pixels) -> list[int]:
    height, width = pixels.shape[:2]
    return [height] if height == width else []


@lru_cache(maxsize=2)  # the sub-images of one photograph follow each other, HR beside LR
def _decode_file(path: Path) -> Pixels:
    return decode(path, str(path))
