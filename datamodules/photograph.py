"""A photograph with all that must outlive its enlargement, and the one place where pictures of results are written."""

import io
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo
from scipy.ndimage import distance_transform_edt

from datamodules.images import (
    RAW,
    ImageError,
    developed,
    in_srgb,
    is_transparent,
    opened,
    orientation,
    to_srgb,
    warn_of_pages,
)
from lightning_modules.whole_file import whole_file

Levels = NDArray[np.unsignedinteger[Any]]
"""Grey levels 0..255 or 0..65535."""

Colours = Literal["source", "srgb"]
_ROUNDING = 3  # levels that a colour may change on its way to sRGB and back
QUALITY = 95  # of JPEG and WebP
DEFLATE = 4  # of 9, in PNG and TIFF: more takes minutes for large images, and saves little
ROWS = 256  # of an image that are converted at a time

# EXIF tags that describe how the pixels of a TIFF are stored, and no photograph; and what has an owner of its own here.
_STORAGE = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284, 288, 289}
    | {290, 291, 292, 293, 296, 297, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 333, 334, 336, 337}
    | {338, 339, 340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532}
    | {700, 33723, 34377, 34675}
)
_XMP, _IPTC = 700, 33723  # tags of a TIFF
_MOST_IN_JPEG = {"exif": 65533, "xmp": 65504, "extra": 65537}  # bytes of a segment, of `extra` with its header
_CALLED = {"exif": "EXIF", "xmp": "XMP", "extra": "IPTC record"}
_IPTC_RESOURCE = 0x0404  # in what Photoshop adds to a JPEG
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_log = logging.getLogger(__name__)


class Format(NamedTuple):
    """What a format of files can hold.

    Attributes:
        name: Pillow's name.
        suffix: Of files.
        deep: 16 bits a channel.
        alpha: Transparency.
        longest: The longest side in pixels.
    """

    name: str
    suffix: str
    deep: bool
    alpha: bool
    longest: int


FORMATS = {
    "png": Format("PNG", ".png", deep=True, alpha=True, longest=2**31 - 1),
    "jpg": Format("JPEG", ".jpg", deep=False, alpha=False, longest=65500),
    "webp": Format("WEBP", ".webp", deep=False, alpha=True, longest=16383),
    "tiff": Format("TIFF", ".tiff", deep=True, alpha=True, longest=2**31 - 1),
}
OF_SUFFIX = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff"}


@dataclass(frozen=True)
class Photograph:
    """An image with what belongs to it.

    Attributes:
        name: What messages call it.
        colours: `[H,W,3]`, upright, in sRGB, of 8 or 16 bits.
        alpha: `[H,W]`, 0 where nothing is seen, as many bits; None where all is opaque.
        grey: It was stored without colours, and is written so.
        profile: The colour profile that it had, where results can be written in it.
        exif: Without what describes the file it came from; the orientation is that of `colours`.
        xmp: As stored.
        iptc: As stored.
        dpi: Pixels to the inch, each way.
        beyond: `[h,w,3]` of the file's own size: what its colours are beyond those of sRGB, in 8-bit levels of its
            profile; None where sRGB can show them all. Results in that profile have it added, interpolated.
    """

    name: str
    colours: Levels
    alpha: Levels | None = None
    grey: bool = False
    profile: bytes | None = None
    exif: Image.Exif | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    beyond: NDArray[np.float32] | None = None

    @property
    def depth(self) -> int:
        """Bits of a channel: 8 or 16."""
        return 8 * self.colours.dtype.itemsize

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.colours.shape[1], self.colours.shape[0]

    def with_colours(self, colours: Levels) -> "Photograph":
        """The photograph with other pixels, `[H,W,3]` in sRGB; its transparency is resampled to their size."""
        alpha = self.alpha
        if alpha is not None:
            alpha = resampled(alpha, (colours.shape[1], colours.shape[0])).astype(alpha.dtype)
            if self.colours.dtype != colours.dtype:
                alpha = rescaled(alpha, colours.dtype)
        return replace(self, colours=colours, alpha=alpha)


# Reading.


def read_photograph(source: bytes | Path, name: str) -> Photograph:
    """Reads an image file with all that belongs to it.

    Colours in a profile are converted to sRGB, the EXIF orientation is applied, and 16 bits of PNG and TIFF are kept.
    Of several pages or frames the first is taken, with a warning. What is seen through, and so has no colour that
    anyone chose, takes that of the nearest pixel that is seen, so that it does not bleed into it.

    Args:
        source: The encoded bytes, or the path of a file.
        name: What to call it in messages.

    Raises:
        ImageError: the image is empty, truncated, not an image, or of a kind that has no clear meaning.
    """
    if isinstance(source, Path) and source.suffix.lower() in RAW:
        return _raw_photograph(source, name)
    with opened(source, name) as image:
        return _photograph(image, source, name)


def stored_depth(path: Path) -> int:
    """Bits of a channel, 8 or 16, that a file will be read with, from its header.

    Raises:
        OSError: it is no image.
    """
    if path.suffix.lower() in RAW:
        return 16
    with Image.open(path) as image:
        return 8 if _deep_kind(image) is None else 16


def photograph_of(image: Image.Image, name: str) -> Photograph:
    """What `read_photograph` makes of a file, of an image that Pillow has opened.

    Raises:
        ImageError: it is of a kind that has no clear meaning.
    """
    try:
        return _photograph(image.copy(), None, name)
    except (ValueError, OSError) as error:
        raise ImageError(f"{name}: {error}") from error


def _photograph(image: Image.Image, source: bytes | Path | None, name: str) -> Photograph:
    """Reads an opened image, which is changed; `source` is read again where Pillow cuts 16 bits to 8."""
    warn_of_pages(image, name)
    deep = _deep_kind(image)  # before EXIF is asked for, which may decode the image
    turned = orientation(image)
    iptc = _iptc(image)
    ImageOps.exif_transpose(image, in_place=True)
    xmp = image.info.get("xmp") or _tag(image, _XMP)
    mode, profile = image.mode, image.info.get("icc_profile") or None
    exif, dpi = _exif(image, name), _dpi(image)

    stored: Levels
    colours: Levels
    alpha: Levels | None
    if deep is not None:
        content = source.read_bytes() if isinstance(source, Path) else source or b""
        stored, colours, alpha = _deep(image, content, deep, turned, name)
    else:
        stored, colours, alpha = _shallow(image, name)

    grey = mode in _GREY
    kind = "" if profile is None else to_srgb(profile)[0]
    usable = kind in (("L",) if grey else ("RGB", "sRGB"))
    if kind and not usable and kind != "sRGB":
        _log.warning("%s: results are written in sRGB, for its colour profile is not one of %s", name, mode)
    return Photograph(
        name,
        colours if alpha is None else _covered(colours, alpha),
        alpha,
        grey,
        profile if usable else None,
        exif,
        xmp.encode() if isinstance(xmp, str) else xmp,
        iptc,
        dpi,
        _beyond(stored, colours, profile) if usable and profile is not None and not grey else None,
    )


def _raw_photograph(path: Path, name: str) -> Photograph:
    """A camera's raw file, developed; its EXIF stays in it."""
    try:
        return Photograph(name, developed(path.read_bytes(), path.suffix.lower(), bits=16))
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: {error}") from error


def _deep_kind(image: Image.Image) -> str | None:
    """Which decoder reads the 16 bits that Pillow would cut to 8; None where Pillow reads all there is."""
    tiles = getattr(image, "tile", None)  # how Pillow will decode
    raw = str(tiles[0][3]) if tiles else ""
    if image.format == "PNG" and ";16" in raw and image.mode != "I;16":
        return "png"
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
        if set(bits) == {16} and image.mode in ("RGB", "RGBA", "RGBX", "LA"):
            return "tiff"
        if set(bits) == {16} and not image.mode.startswith("I"):
            _log.warning("%s holds 16 bits a channel, of which 8 are read: save it as RGB or grey", image.mode)
    return "pillow" if image.mode.startswith("I") else None


def _deep(
    image: Image.Image, content: bytes, kind: str, turned: int, name: str
) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint16] | None]:
    """Colours `[H,W,C]` as stored, `[H,W,3]` in sRGB, and transparency `[H,W]`, of 16 bits."""
    if kind == "pillow":  # it has been turned already
        pixels = np.asarray(image)[..., None]
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("32-bit integer pixels have no fixed white; save it with 8 or 16 bits a channel")
        pixels, turned = pixels.astype(np.uint16), 1
    elif kind == "png":
        pixels = imagecodecs.png_decode(content)
    else:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages.first
            pixels = page.asarray()
            pixels = np.moveaxis(pixels, 0, -1) if page.planarconfig == 2 else pixels
    pixels = _turned(pixels if pixels.ndim == 3 else pixels[..., None], turned)

    channels = pixels.shape[-1]
    alpha = np.ascontiguousarray(pixels[..., -1]) if channels in (2, 4) and image.mode != "RGBX" else None
    if alpha is not None and alpha.min() == 65535:
        alpha = None
    colours = np.ascontiguousarray(pixels[..., : 1 if channels < 3 else 3])
    return colours, _deep_in_srgb(colours, image.info.get("icc_profile"), name), alpha


def _deep_in_srgb(colours: NDArray[np.uint16], profile: bytes | None, name: str) -> NDArray[np.uint16]:
    grey = colours.shape[-1] == 1
    mode, transform = to_srgb(profile) if profile else ("sRGB", None)
    if transform is None and mode != "sRGB":
        _log.warning("%s: its colour profile cannot be used (%s); it is read as sRGB", name, mode)
    if transform is None or mode != ("L" if grey else "RGB"):
        return np.repeat(colours, 3, axis=-1) if grey else colours
    return transformed(colours, profile or b"", srgb(), "gray" if grey else "rgb", "rgb")


def _shallow(image: Image.Image, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Colours `[H,W,3]` as stored and in sRGB, and transparency `[H,W]`, of 8 bits."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed white; save it with 8 or 16 bits a channel")
    if not is_transparent(image):
        return np.asarray(image.convert("RGB")), np.asarray(in_srgb(image, image, name)), None
    rgba = image.convert("RGBA")
    grey = image.mode in _GREY
    colours = in_srgb(rgba.getchannel("R") if grey else rgba.convert("RGB"), image, name)
    return np.asarray(rgba.convert("RGB")), np.asarray(colours), np.asarray(rgba.getchannel("A"))


def _beyond(stored: Levels, colours: Levels, profile: bytes) -> NDArray[np.float32] | None:
    """See `Photograph.beyond`: what is lost where a channel of sRGB is at its end."""
    if to_srgb(profile)[1] is None:
        return None
    white = np.iinfo(colours.dtype).max
    ended = ((colours == 0) | (colours == white)).any(axis=-1)
    if not ended.any():
        return None

    beyond = np.zeros(colours.shape, np.float32)
    for rows in _bands(len(colours)):
        back: Any
        if white == 255:
            back = np.asarray(_in_profile(Image.fromarray(np.ascontiguousarray(colours[rows])), profile, grey=False))
        else:
            back = transformed(colours[rows], srgb(), profile, "rgb", "rgb")
        beyond[rows] = (stored[rows].astype(np.float32) - back) * (255 / white) * ended[rows][..., None]
    return beyond if np.abs(beyond).max() > _ROUNDING else None


def _covered(colours: Levels, alpha: Levels) -> Levels:
    """Colours where nothing is seen are those of the nearest pixel that is."""
    unseen = alpha == 0
    if not unseen.any() or unseen.all():
        return colours
    rows, columns = distance_transform_edt(unseen, return_distances=False, return_indices=True)
    covered: Levels = colours[rows, columns]
    return covered


def _turned(pixels: NDArray[Any], turned: int) -> NDArray[Any]:
    """Pixels `[H,W,C]` upright, from those of an EXIF orientation."""
    if turned in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    flip_rows, flip_columns = turned in (3, 4, 7, 8), turned in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _exif(image: Image.Image, name: str) -> Image.Exif | None:
    """What EXIF says of the photograph; without, and with a warning, where it is damaged."""
    try:
        kept = _own_exif(image.getexif())
        kept.tobytes()
    except (ValueError, TypeError, LookupError, AttributeError, OSError, SyntaxError, struct.error) as error:
        _log.warning("%s: its EXIF is damaged and left out (%s)", name, error)
        return None
    return kept if len(kept) else None


def _own_exif(exif: Image.Exif) -> Image.Exif:
    """EXIF without what describes the file that it came from."""
    kept = Image.Exif()
    for tag, value in exif.items():
        if tag not in _STORAGE and tag not in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop):
            kept[tag] = value
    for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        values = {tag: value for tag, value in exif.get_ifd(ifd).items() if not isinstance(value, dict)}
        for size in (
            ExifTags.Base.ExifImageWidth,
            ExifTags.Base.ExifImageHeight,
            ExifTags.Base.ExifInteroperabilityOffset,
        ):
            if ifd == ExifTags.IFD.Exif:
                values.pop(size, None)  # of the file that it came from
        if values:
            kept.get_ifd(ifd).update(values)
            kept[ifd] = kept.get_ifd(ifd)
    return kept


def _iptc(image: Image.Image) -> bytes | None:
    """The IPTC record of a JPEG, a TIFF, or a PNG in ImageMagick's form."""
    photoshop = image.info.get("photoshop")
    if isinstance(photoshop, dict) and isinstance(photoshop.get(_IPTC_RESOURCE), bytes):
        return photoshop[_IPTC_RESOURCE] or None
    text = image.info.get("Raw profile type iptc")
    if isinstance(text, str):
        _, _, digits = text.strip().partition("\n")
        _, _, digits = digits.partition("\n")
        try:
            return _of_resources(bytes.fromhex("".join(digits.split())))
        except ValueError:
            return None
    stored = _tag(image, _IPTC)
    if isinstance(stored, tuple):  # some writers say that it is of 32-bit numbers
        return struct.pack(f"<{len(stored)}I", *stored)
    return stored if isinstance(stored, bytes) and stored else None


def _of_resources(content: bytes) -> bytes | None:
    """The IPTC record in Photoshop's resources, or the record itself."""
    content = content.removeprefix(b"Photoshop 3.0\0")
    while content.startswith(b"8BIM") and len(content) >= 12:
        (number,) = struct.unpack(">H", content[4:6])
        name = 1 + content[6]
        start = 6 + name + name % 2
        (length,) = struct.unpack(">I", content[start : start + 4])
        if number == _IPTC_RESOURCE:
            return content[start + 4 : start + 4 + length] or None
        content = content[start + 4 + length + length % 2 :]
    return content or None


def _resources(iptc: bytes) -> bytes:
    """The IPTC record as Photoshop stores it."""
    return b"8BIM" + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)


def _tag(image: Image.Image, tag: int) -> Any:
    return image.tag_v2.get(tag) if isinstance(image, TiffImagePlugin.TiffImageFile) else None


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Pixels to the inch, from the file's header or else from EXIF."""
    dpi = image.info.get("dpi")
    if dpi is None:
        exif = image.getexif()
        tags = (ExifTags.Base.XResolution, ExifTags.Base.YResolution)
        dpi = tuple(exif.get(tag, 0) for tag in tags)
        if exif.get(ExifTags.Base.ResolutionUnit) == 3:  # to the centimetre
            dpi = tuple(2.54 * value for value in dpi)
    across, down = (float(value) for value in dpi)
    return (across, down) if min(across, down) > 1 else None


def pillow_image(photograph: Photograph) -> Image.Image:
    """The photograph as Pillow holds one, of 8 bits unless it is grey and opaque, in its own profile."""
    kind, profile = FORMATS["png"], photograph.profile
    if photograph.depth == 16 and photograph.grey and photograph.alpha is None:
        made = Image.fromarray(_deep_pixels(photograph, profile))
    else:
        made = _image(photograph, profile, kind)
    options = _options(photograph, profile, kind, QUALITY)
    made.info |= {name: options[name] for name in ("icc_profile", "dpi") if name in options}
    if photograph.exif is not None:
        made.info["exif"] = photograph.exif.tobytes()
    if photograph.xmp is not None:
        made.info["xmp"] = photograph.xmp
    return made


# Pixels.


def rescaled(levels: Levels, dtype: Any) -> Levels:
    """Levels of another number of bits."""
    if levels.dtype == dtype:
        return levels
    if dtype == np.uint16:
        return levels.astype(np.uint16) * np.uint16(257)
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def resampled(levels: Levels, size: tuple[int, int]) -> Levels:
    """Pixels `[H,W]` or `[H,W,C]` at another width and height, by Lanczos' kernel, antialiased where it shrinks."""
    if size == (levels.shape[1], levels.shape[0]):
        return levels
    if levels.ndim == 3:
        made = np.empty((size[1], size[0], levels.shape[2]), levels.dtype)
        for channel in range(levels.shape[2]):
            made[..., channel] = resampled(np.ascontiguousarray(levels[..., channel]), size)
        return made
    if levels.dtype == np.uint8:
        return np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.LANCZOS))
    floats = Image.fromarray(levels.astype(np.float32)).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(floats).round().clip(0, 65535).astype(np.uint16)


@lru_cache(maxsize=1)
def srgb() -> bytes:
    """The profile of sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def transformed(
    colours: NDArray[np.uint16], source: bytes, target: bytes, kind: str, becomes: str
) -> NDArray[np.uint16]:
    """16-bit pixels `[H,W,C]` from one profile to another; Pillow's own transforms know 8 bits only."""
    made = np.empty((*colours.shape[:2], 1 if becomes == "gray" else 3), np.uint16)
    for rows in _bands(len(colours)):
        made[rows] = imagecodecs.cms_transform(
            np.ascontiguousarray(colours[rows]),
            source,
            target,
            colorspace=kind,
            outcolorspace=becomes,
            intent=int(ImageCms.Intent.RELATIVE_COLORIMETRIC),
            flags=int(ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE),  # else by a coarse table
        ).reshape(made[rows].shape)
    return made


def _bands(height: int) -> Iterator[slice]:
    for top in range(0, height, ROWS):
        yield slice(top, min(top + ROWS, height))


# Writing.


def write_photograph(
    photograph: Photograph,
    path: Path,
    *,
    form: str = "png",
    quality: int = QUALITY,
    colours: Colours = "source",
    overwrite: bool = False,
) -> None:
    """Writes a photograph to a file, which gets its name when it is whole; after an error nothing remains.

    What the format cannot hold is left out with a warning: 16 bits become 8, transparency is flattened on white.

    Args:
        photograph: The photograph.
        path: The file.
        form: One of `FORMATS`.
        quality: Of JPEG and WebP, 1 to 100.
        colours: `source` writes them in the photograph's profile and embeds it; `srgb` writes sRGB without a profile.
        overwrite: Replace a file of that name.

    Raises:
        FileExistsError: the file exists, or a folder on its way is a file.
        ValueError: the photograph is larger than the format allows.
        OSError: the file cannot be written.
    """
    kind = FORMATS[form]
    check_size(photograph.name, photograph.size, form)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise FileExistsError(exists_message(Path(error.filename))) from error
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror}); name another folder") from error
    if path.exists() and not overwrite:
        raise FileExistsError(exists_message(path))

    deep = photograph.depth == 16 and kind.deep
    if photograph.depth == 16 and not deep:
        _log.warning("%s: %s holds 8 bits a channel; 16 are kept by png and tiff", photograph.name, form)
    if photograph.alpha is not None and not kind.alpha:
        _log.warning("%s: transparent parts are flattened on white, which %s cannot hold", photograph.name, form)
    profile = photograph.profile if colours == "source" else None
    with whole_file(path) as part:
        if form == "tiff":
            _write_tiff(part, photograph, profile, deep)
        elif deep:
            _write_deep_png(part, photograph, profile)
        else:
            image = _image(photograph, profile, kind)
            image.save(part, format=kind.name, **_options(photograph, profile, kind, quality))


def check_size(name: str, size: tuple[int, int], form: str) -> None:
    """Refuses pictures that a format cannot hold.

    Raises:
        ValueError: a side is too long.
    """
    longest = FORMATS[form].longest
    if max(size) > longest:
        raise ValueError(
            f"{name}: {size[0]}x{size[1]} pixels are more than {form} can hold ({longest} a side); give --format png "
            "or tiff, or a smaller size"
        )


def bytes_to_write(form: str, depth: int) -> int:
    """Bytes of memory for each pixel while a photograph of 8 or 16 bits is written, with its own."""
    deep = depth == 16 and FORMATS[form].deep
    if form == "tiff":
        return depth // 8 * 3
    return 18 if deep else depth // 8 * 3 + 4  # Pillow's pixels have 4 bytes


def check_options(form: str, quality: int, *, skip_existing: bool, overwrite: bool) -> None:
    """Checks how results are to be written.

    Raises:
        ValueError: the format is unknown, the quality outside 1 to 100, or files are to be skipped and overwritten.
    """
    if form not in FORMATS:
        raise ValueError(f"format: {form} is not one of {', '.join(FORMATS)}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality: {quality} is outside 1 to 100")
    if skip_existing and overwrite:
        raise ValueError("skip_existing and overwrite: existing files are either skipped or overwritten")


def exists_message(path: Path) -> str:
    """What is said of a file in the way."""
    return f"{path}: exists, and nothing is overwritten; --skip_existing leaves it, --overwrite replaces it"


def _image(photograph: Photograph, profile: bytes | None, kind: Format) -> Image.Image:
    """The 8-bit image that is saved, in the colours of the profile."""
    bands = _bands(photograph.size[1])
    shown = (_as_image(photograph, profile, kind, rows) for rows in bands)
    first = next(shown)
    made = Image.new(first.mode, photograph.size)
    for top, band in zip(range(0, photograph.size[1], ROWS), chain([first], shown), strict=True):
        made.paste(band, (0, top))
    return made


def _as_image(photograph: Photograph, profile: bytes | None, kind: Format, rows: slice) -> Image.Image:
    """Some rows of the 8-bit image that is saved."""
    alpha = photograph.alpha
    grey = photograph.grey and (alpha is None or kind.name != "WEBP")
    band = rescaled(photograph.colours[rows], np.uint8)
    opacity = None if alpha is None else rescaled(alpha[rows], np.uint8)
    if opacity is not None and not kind.alpha:
        share = opacity[..., None].astype(np.float32) / 255
        band = (band * share + 255 * (1 - share)).round().astype(np.uint8)

    shown = _in_profile(Image.fromarray(np.ascontiguousarray(band)), profile, grey)
    if profile is not None and photograph.beyond is not None:
        added = np.asarray(shown) + _enlarged_rows(photograph.beyond, photograph.size, rows)
        shown = Image.fromarray(added.round().clip(0, 255).astype(np.uint8))
    if opacity is not None and kind.alpha:
        shown.putalpha(Image.fromarray(np.ascontiguousarray(opacity)))
    return shown


def _enlarged_rows(small: NDArray[np.float32], size: tuple[int, int], rows: slice) -> NDArray[np.float32]:
    """Some rows of what `[h,w,3]` becomes at another width and height, by bilinear interpolation."""
    height, width = small.shape[:2]
    box = (0.0, rows.start * height / size[1], float(width), rows.stop * height / size[1])
    shape = size[0], rows.stop - rows.start
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(small[..., channel])).resize(shape, Image.Resampling.BILINEAR, box=box)
        )
        for channel in range(3)
    ]
    return np.stack(channels, axis=-1)


def _in_profile(image: Image.Image, profile: bytes | None, grey: bool) -> Image.Image:
    """RGB pixels of sRGB in a profile, or without one; grey where that is wanted."""
    mode, transform = _from_srgb(profile, grey) if profile else ("", None)
    if transform is None:
        return image.convert("L") if grey else image
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted.convert("L") if grey and mode != "L" else converted


@lru_cache(maxsize=64)
def _from_srgb(profile: bytes, grey: bool) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode of a profile, and what converts sRGB to it; None where nothing would change."""
    mode, back = to_srgb(profile)
    if back is None:
        return mode, None
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        "RGB",
        mode,
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return mode, transform


def _deep_pixels(photograph: Photograph, profile: bytes | None) -> NDArray[np.uint16]:
    """The 16-bit pixels that are saved, `[H,W]` or `[H,W,C]`, in the colours of the profile."""
    if profile is None and photograph.alpha is None and not photograph.grey:
        return rescaled(photograph.colours, np.uint16).astype(np.uint16, copy=False)
    bands = (_deep_rows(photograph, profile, rows) for rows in _bands(photograph.size[1]))
    first = next(bands)
    made = np.empty((photograph.size[1], *first.shape[1:]), np.uint16)
    for top, band in zip(range(0, photograph.size[1], ROWS), chain([first], bands), strict=True):
        made[top : top + len(band)] = band
    return made


def _deep_rows(photograph: Photograph, profile: bytes | None, rows: slice) -> NDArray[np.uint16]:
    """Some rows of the 16-bit pixels that are saved."""
    pixels: Any = rescaled(photograph.colours[rows], np.uint16)
    mode, back = to_srgb(profile) if profile else ("", None)
    if profile is not None and back is not None:
        pixels = transformed(pixels, srgb(), profile, "rgb", "gray" if mode == "L" else "rgb")
        if photograph.beyond is not None:
            added = pixels + 257 * _enlarged_rows(photograph.beyond, photograph.size, rows)
            pixels = added.round().clip(0, 65535).astype(np.uint16)
    if photograph.grey and pixels.shape[-1] == 3:
        pixels = _luma(pixels)
    if photograph.alpha is not None:
        pixels = np.concatenate([pixels, rescaled(photograph.alpha[rows], np.uint16)[..., None]], axis=-1)
    shown: NDArray[np.uint16] = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return shown


def _luma(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """BT.601's grey, as Pillow computes it of 8 bits, `[h,w,1]`."""
    weighted = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return weighted.round().clip(0, 65535).astype(np.uint16)[..., None]


def _options(photograph: Photograph, profile: bytes | None, kind: Format, quality: int) -> dict[str, Any]:
    """What Pillow is told of a PNG, JPEG or WebP: profile, metadata, quality."""
    exif = photograph.exif
    options: dict[str, Any] = {}
    if profile is not None:
        options["icc_profile"] = profile
    if photograph.dpi is not None and kind.name != "WEBP":
        options["dpi"] = photograph.dpi
    if kind.name == "WEBP" and photograph.dpi is not None:  # which has no other place for it
        exif = _copy(exif)
        exif[ExifTags.Base.XResolution], exif[ExifTags.Base.YResolution] = photograph.dpi
        exif[ExifTags.Base.ResolutionUnit] = 2
    if kind.name in ("JPEG", "WEBP"):
        options["quality"] = quality
    if kind.name == "JPEG" and quality >= 90:
        options["subsampling"] = 0

    if kind.name == "PNG":
        options |= {"pnginfo": _png_texts(photograph), "compress_level": DEFLATE}
    elif photograph.xmp is not None:
        options["xmp"] = photograph.xmp
    if photograph.iptc is not None:
        if kind.name == "JPEG":
            content = b"Photoshop 3.0\0" + _resources(photograph.iptc)
            options["extra"] = b"\xff\xed" + struct.pack(">H", min(2 + len(content), 65535)) + content
        elif kind.name == "WEBP":
            _log.warning("%s: its IPTC record is left out, for which webp has no place", photograph.name)
    if exif is not None:
        options["exif"] = exif.tobytes()
    if kind.name == "JPEG":
        for part, most in _MOST_IN_JPEG.items():
            if len(options.get(part, b"")) > most:
                _log.warning("%s: its %s is longer than jpg can hold and is left out", photograph.name, _CALLED[part])
                del options[part]
    return options


def _copy(exif: Image.Exif | None) -> Image.Exif:
    copied = Image.Exif()
    if exif is not None:
        copied.load(exif.tobytes())
    return copied


def _png_texts(photograph: Photograph) -> PngInfo:
    """XMP, and IPTC in ImageMagick's form, which other programs read too."""
    texts = PngInfo()
    if photograph.xmp is not None:
        texts.add_itxt("XML:com.adobe.xmp", photograph.xmp.decode("utf-8", "replace"))
    if photograph.iptc is not None:
        content = _resources(photograph.iptc)
        digits = "\n".join(content.hex()[place : place + 72] for place in range(0, 2 * len(content), 72))
        texts.add_text("Raw profile type iptc", f"\niptc\n{len(content):8d}\n{digits}\n", zip=True)
    return texts


def _tiff_tags(photograph: Photograph) -> Image.Exif:
    """EXIF, XMP and IPTC as tags of a TIFF, which is what EXIF is everywhere."""
    tags = _copy(photograph.exif)
    for tag, content in ((_XMP, photograph.xmp), (_IPTC, photograph.iptc)):
        if content is not None:
            tags[tag] = content
    return tags


def _write_deep_png(path: Path, photograph: Photograph, profile: bytes | None) -> None:
    """A PNG of 16 bits, which Pillow writes of grey only: its pixels, between what Pillow writes of all else."""
    beside = io.BytesIO()
    Image.new("L", (1, 1)).save(beside, **_options(photograph, profile, FORMATS["png"], QUALITY), format="PNG")
    encoded = memoryview(imagecodecs.png_encode(_deep_pixels(photograph, profile), level=DEFLATE))
    header = 8 + 25  # signature and IHDR
    with path.open("wb") as file:
        file.write(encoded[:header])
        for name, chunk in _chunks(beside.getvalue()):
            if name not in (b"IHDR", b"IDAT", b"IEND"):
                file.write(chunk)
        file.write(encoded[header:])


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and whole content of each chunk of a PNG file."""
    place = 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        yield png[place + 4 : place + 8], png[place : place + length + 12]
        place += length + 12


def _write_tiff(path: Path, photograph: Photograph, profile: bytes | None, deep: bool) -> None:
    """A TIFF, strip by strip: tifffile's pixels, since Pillow writes 16 bits of grey only, and Pillow's tags."""
    width, height = photograph.size
    channels = (1 if photograph.grey else 3) + (photograph.alpha is not None)
    dtype = np.dtype("<u2" if deep else "u1")

    def strips() -> Iterator[bytes]:
        for rows in _bands(height):
            shown = (
                _deep_rows(photograph, profile, rows) if deep else _as_image(photograph, profile, FORMATS["tiff"], rows)
            )
            pixels = np.asarray(shown).reshape(-1, width, channels)
            yield imagecodecs.zlib_encode(imagecodecs.delta_encode(pixels, axis=1).tobytes(), level=DEFLATE)

    options: dict[str, Any] = {}
    if photograph.dpi is not None:
        options |= {"resolution": photograph.dpi, "resolutionunit": "INCH"}
    big = height * width * channels * dtype.itemsize > 2**31
    tifffile.imwrite(
        path,
        strips(),
        shape=(height, width, channels) if channels > 1 else (height, width),
        dtype=dtype,
        byteorder="<",
        bigtiff=big,
        photometric="minisblack" if photograph.grey else "rgb",
        extrasamples=None if photograph.alpha is None else ["unassalpha"],
        planarconfig="contig" if channels > 1 else None,
        compression="adobe_deflate",
        predictor=True,
        rowsperstrip=ROWS,
        metadata=None,
        software=False,
        iccprofile=profile,
        **options,
    )
    tags = _tiff_tags(photograph)
    if not len(tags):
        return
    if big:
        _log.warning("%s: EXIF, XMP and IPTC are left out of a TIFF of this size", photograph.name)
    else:
        _add_tags(path, tags)


def _add_tags(path: Path, tags: Image.Exif) -> None:
    """Adds tags to the only directory of a TIFF: a longer one at its end takes its place."""
    added = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    for tag in tags:
        nested = tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
        added[tag] = dict(tags.get_ifd(tag)) if nested else tags[tag]

    with path.open("r+b") as file:
        file.seek(4)
        file.seek(struct.unpack("<I", file.read(4))[0])
        (count,) = struct.unpack("<H", file.read(2))
        entries = [file.read(12) for _ in range(count)]
        place = file.seek(0, io.SEEK_END)
        place += file.write(b"\0" * (place % 2))
        file.write(added.tobytes(place))

        file.seek(place)
        (more,) = struct.unpack("<H", file.read(2))
        entries += [file.read(12) for _ in range(more)]
        entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
        end = file.seek(0, io.SEEK_END)
        end += file.write(b"\0" * (end % 2))
        file.write(struct.pack("<H", len(entries)) + b"".join(entries) + b"\0" * 4)
        file.seek(4)
        file.write(struct.pack("<I", end))
