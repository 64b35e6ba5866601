"""The one place where image files are read: any file a camera or an editor writes becomes uint8 RGB."""

import contextlib
import importlib.util
import io
import logging
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

HEIC = frozenset({".heic", ".heif", ".hif"})
if importlib.util.find_spec("pillow_heif"):
    from pillow_heif import register_heif_opener

    register_heif_opener()
    _HEIC_READ = HEIC
else:
    _HEIC_READ = frozenset()

RAW = frozenset(
    {".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw"}
)
_RAW_READ = RAW if importlib.util.find_spec("rawpy") else frozenset()
_EXTRAS = {**dict.fromkeys(HEIC - _HEIC_READ, "heic"), **dict.fromkeys(RAW - _RAW_READ, "raw")}  # that would read them

# Pillow refuses images of more than twice this; by itself already above 179 megapixels, which panoramas reach.
Image.MAX_IMAGE_PIXELS = 500_000_000

Pixels = NDArray[np.uint8]  # [H,W,3]

# What is looked for in folders. Whatever else Pillow can read is read where it is named as a file.
SUFFIXES = (
    _HEIC_READ
    | _RAW_READ
    | {
        *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif"),
        *(".tiff", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi"),
    }
)

_SUFFIX_OF_FORMAT = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}  # formats that every reader of shards decodes
_ORIENTATION = 0x0112  # EXIF tag: values from 5 on swap width and height
_ADOBE_RGB = "R03"  # interoperability index in EXIF
_STEPS = 17  # colours a channel that a profile is tried with

# What Pillow's plugins raise for a damaged file.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    AttributeError,
    AssertionError,
    RuntimeError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_log = logging.getLogger(__name__)


class ImageError(Exception):
    """An image that cannot be used; the message says which and why."""


def find_images(path: Path) -> list[Path]:
    """The image files at or below `path`, sorted. Linked folders are followed, hidden files and folders skipped.

    A warning says how many other files were passed over, and why.

    Raises:
        FileNotFoundError: `path` does not exist or holds no image.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder of images")

    files = list(_files(path, ()))
    found = sorted(file for file in files if not _why_not(file))
    passed_over = Counter(why for why in map(_why_not, files) if why)
    reasons = ", ".join(f"{count} {why}" for why, count in passed_over.items())
    if not found:
        holds = f"; it holds {reasons}" if reasons else ""
        raise FileNotFoundError(f"{path}: no image below this folder (looked for {', '.join(sorted(SUFFIXES))}){holds}")
    if reasons:
        _log.warning("%s: %d files are passed over: %s", path, passed_over.total(), reasons)
    return found


def _files(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """All files below a folder that are not hidden; `above` are the real paths of the folders that it lies in."""
    real = os.path.realpath(folder)
    if real in above:
        return  # a link to a folder that holds it
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        _log.warning("%s: is passed over: %s", folder, error.strerror)
        return

    for entry in entries:
        if entry.name[0] == "." or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            yield from _files(entry, (*above, real))
        else:
            yield entry


def _why_not(file: Path) -> str:
    """Why a file is no image to read; empty where it is one."""
    suffix = file.suffix.lower()
    if not file.is_file():
        return "broken links" if file.is_symlink() else "that are no regular files"
    if suffix in SUFFIXES:
        return ""
    if suffix in _EXTRAS:
        return f"{suffix} (pip install 'diffsr[{_EXTRAS[suffix]}]' reads them)"
    return f"{suffix or 'without a suffix'} (no image format that is looked for)"


def decode(source: bytes | Path, name: str) -> Pixels:
    """Decodes an image to uint8 RGB, `[H,W,3]`, upright, in the colours of sRGB.

    The EXIF orientation is applied, and an embedded colour profile converted to sRGB; grey, palette, 16-bit, CMYK and
    YCbCr images become 8-bit RGB; transparency is flattened on white, and of several pages or frames the first is
    taken, both with a warning.

    Args:
        source: the encoded bytes, or the path of a file.
        name: what to call the image in messages.

    Raises:
        ImageError: the image is empty, truncated, not an image, or of a kind that has no clear 8-bit meaning.
    """
    with opened(source, name) as image:
        warn_of_pages(image, name)
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_rgb(image, name))


@contextlib.contextmanager
def opened(source: bytes | Path, name: str) -> Iterator[Image.Image]:
    """The opened image; whatever goes wrong with it, inside as well, is an `ImageError` that names it."""
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        if not content:
            raise ValueError("zero bytes")
        suffix = "" if isinstance(source, bytes) else source.suffix.lower()
        if suffix in RAW:  # of which Pillow would open the preview, if anything
            yield Image.fromarray(developed(content, suffix, bits=8))
            return
        with Image.open(io.BytesIO(content)) as image:
            yield image
    except UnidentifiedImageError as error:
        extra = "" if isinstance(source, bytes) else _EXTRAS.get(source.suffix.lower(), "")
        way = f"; pip install 'diffsr[{extra}]' reads such files" if extra else ""
        raise ImageError(f"{name}: {_reason(error)}{way}") from error
    except _UNREADABLE as error:
        raise ImageError(f"{name}: {_reason(error)}") from error


def developed(content: bytes, suffix: str, bits: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A camera's raw file with its own white balance: upright, in sRGB, `[H,W,3]`, of 8 or 16 bits.

    Raises:
        ValueError: it cannot be read.
    """
    if suffix not in _RAW_READ:
        raise ValueError(f"is a camera's raw file; pip install 'diffsr[raw]' reads it, {suffix} included")
    import rawpy

    try:
        with rawpy.imread(io.BytesIO(content)) as raw:
            pixels: NDArray[np.uint16] = raw.postprocess(use_camera_wb=True, output_bps=bits)
    except rawpy.LibRawError as error:
        raise ValueError(f"cannot be read as a camera's raw file ({error})") from error
    return pixels


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of a file as it will be decoded, read from its header.

    Raises:
        ImageError: the file is not an image.
    """
    try:
        with Image.open(path) as image:
            return (image.height, image.width) if _is_turned(image) else (image.width, image.height)
    except _UNREADABLE as error:
        empty = path.is_file() and not path.stat().st_size
        raise ImageError(f"{path}: {'zero bytes' if empty else _reason(error)}") from error


def storable_suffix(path: Path) -> str | None:
    """The suffix under which the bytes of a file can go into a shard unchanged; None if they must be encoded anew.

    The format counts, not the name of the file: PNG, JPEG and WebP without transparency are kept.

    Raises:
        ImageError: the file is not an image.
    """
    with opened(path, str(path)) as image:
        suffix = _SUFFIX_OF_FORMAT.get(image.format or "")
        return None if suffix is None or is_transparent(image) else suffix


def stored_mode(source: bytes | Path) -> str:
    """Pillow's mode of an image as stored, such as "RGB" or "RGBA with transparency"."""
    with opened(source, "image" if isinstance(source, bytes) else str(source)) as image:
        return f"{image.mode} with transparency" if is_transparent(image) else image.mode


def _is_turned(image: Image.Image) -> bool:
    if image.format == "PNG" and "exif" not in image.info:
        return False  # Pillow would decode the whole image to look for a later chunk
    return orientation(image) >= 5


def orientation(image: Image.Image) -> int:
    """The orientation that EXIF says, 1 where it says none; from 5 on, width and height are swapped."""
    return int(image.getexif().get(_ORIENTATION, 1))


def is_transparent(image: Image.Image) -> bool:
    """Whether anything of it can be seen through."""
    if not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] != 255


def warn_of_pages(image: Image.Image, name: str) -> None:
    """Warns of further pages; a camera's MPO holds only a preview or the other eye's view beside the photograph."""
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format != "MPO":
        _log.warning("%s: holds %d pages or frames; only the first is read", name, pages)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed white; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        return in_srgb(_from_16_bit(image), image, name)
    if not is_transparent(image):
        return in_srgb(image, image, name)

    _log.warning("%s: transparent parts are flattened on white", name)
    rgba = image.convert("RGBA")
    opaque = in_srgb(rgba.convert("RGB"), image, name)
    opaque.putalpha(rgba.getchannel("A"))
    white = Image.new("RGBA", opaque.size, "white")
    return Image.alpha_composite(white, opaque).convert("RGB")


def in_srgb(pixels: Image.Image, image: Image.Image, name: str) -> Image.Image:
    """RGB pixels in sRGB, from pixels in the colour profile of `image`, which is sRGB where it has none."""
    profile = image.info.get("icc_profile")
    if not profile:
        if _says_adobe_rgb(image):
            _log.warning("%s: says that it is Adobe RGB, but embeds no colour profile; it is read as sRGB", name)
        return pixels.convert("RGB")

    mode, transform = to_srgb(profile)
    fits = {"L": image.mode[0] in "1LI", "CMYK": image.mode == "CMYK"}.get(mode, True)
    if transform is None or not fits:
        if mode != "sRGB":
            why = f"it is for {mode}, the image is {image.mode}" if transform else mode
            _log.warning("%s: its colour profile cannot be used (%s); it is read as sRGB", name, why)
        return pixels.convert("RGB")
    converted = ImageCms.applyTransform(pixels if pixels.mode == mode else pixels.convert(mode), transform)
    assert converted is not None
    return converted


@lru_cache(maxsize=64)
def to_srgb(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a profile is for, and what converts pixels of that mode to sRGB.

    The transform is None where the profile is sRGB already, within one grey level, so that no pixel is rounded anew;
    and where it cannot be used, which the first entry then describes.
    """
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(opened.profile.xcolor_space.strip())
        if mode is None:
            return f"it is for {opened.profile.xcolor_space.strip()}", None
        transform = ImageCms.buildTransform(
            opened,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return _reason(error), None

    if mode == "RGB" and _changes_nothing(transform):
        return "sRGB", None
    return mode, transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform from RGB to RGB moves no colour by more than one grey level."""
    levels = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    converted = ImageCms.applyTransform(Image.fromarray(colours), transform)
    return bool(np.abs(np.asarray(converted).astype(int) - colours).max() <= 1)


def _says_adobe_rgb(image: Image.Image) -> bool:
    if image.format not in ("JPEG", "MPO", "TIFF"):
        return False
    try:
        return bool(image.getexif().get_ifd(ExifTags.IFD.Interop).get(1) == _ADOBE_RGB)
    except KeyError:  # Pillow before 13, of an image without this part
        return False


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit integer pixels have no fixed white; save it with 8 or 16 bits a channel")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be read"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000} megapixels; cut it into parts"
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).removesuffix(".") or type(error).__name__
