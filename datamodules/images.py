"""The one place where image files are read: any file a camera or an editor writes becomes uint8 RGB."""

import io
import logging
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]  # [H,W,3]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})

_SUFFIX_OF_FORMAT = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}  # formats that every reader of shards decodes
_ORIENTATION = 0x0112  # EXIF tag: values from 5 on swap width and height

# what Pillow's plugins raise for a damaged file
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    struct.error,
    Image.DecompressionBombError,
)
_log = logging.getLogger(__name__)


class ImageError(Exception):
    """An image that cannot be used; the message says which and why."""


def find_images(path: Path) -> list[Path]:
    """The image files at or below `path`, sorted; hidden files and folders are skipped.

    Raises:
        FileNotFoundError: `path` does not exist or holds no image.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder of images")

    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and _visible(file, path))
    if not found:
        raise FileNotFoundError(f"{path}: no image below this folder (looked for {', '.join(sorted(SUFFIXES))})")
    return found


def _visible(file: Path, root: Path) -> bool:
    return file.is_file() and not any(part[0] == "." or part == "__MACOSX" for part in file.relative_to(root).parts)


def decode(source: bytes | Path, name: str) -> Pixels:
    """Decodes an image to uint8 RGB, `[H,W,3]`, upright.

    The EXIF orientation is applied; grey, palette, 16-bit, CMYK and YCbCr images become 8-bit RGB; transparency is
    flattened on white, with a warning; of an animation the first frame is taken.

    Args:
        source: the encoded bytes, or the path of a file.
        name: what to call the image in messages.

    Raises:
        ImageError: the image is empty, truncated, not an image, or of a kind that has no clear 8-bit meaning.
    """
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        if not content:
            raise ValueError("zero bytes")
        with Image.open(io.BytesIO(content)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_rgb(image, name))
    except _UNREADABLE as error:
        raise ImageError(f"{name}: {_reason(error)}") from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of a file as it will be decoded, read from its header.

    Raises:
        ImageError: the file is not an image.
    """
    try:
        with Image.open(path) as image:
            return (image.height, image.width) if _is_turned(image) else (image.width, image.height)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: {'not an image' if path.stat().st_size else 'zero bytes'}") from error


def storable_suffix(path: Path) -> str | None:
    """The suffix under which the bytes of a file can go into a shard unchanged; None if they must be encoded anew.

    The format counts, not the name of the file: PNG, JPEG and WebP without transparency are kept.
    """
    with Image.open(path) as image:
        suffix = _SUFFIX_OF_FORMAT.get(image.format or "")
        return None if suffix is None or _is_transparent(image) else suffix


def stored_mode(source: bytes | Path) -> str:
    """Pillow's mode of an image as stored, such as "RGB" or "RGBA with transparency"."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return f"{image.mode} with transparency" if _is_transparent(image) else image.mode


def _is_turned(image: Image.Image) -> bool:
    if image.format == "PNG" and "exif" not in image.info:
        return False  # Pillow would decode the whole image to look for a later chunk
    return bool(image.getexif().get(_ORIENTATION, 1) >= 5)


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] != 255


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed white; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        return _from_16_bit(image).convert("RGB")
    if not _is_transparent(image):
        return image.convert("RGB")

    _log.warning("%s: transparent parts are flattened on white", name)
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit integer pixels have no fixed white; save it with 8 or 16 bits a channel")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be read"
    return str(error).removesuffix(".") or type(error).__name__
