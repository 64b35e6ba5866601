"""Any file a camera or an editor writes becomes upright 8-bit RGB; what cannot is named."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images import ImageError, decode, find_images
from tests.datamodules.trees import picture, png, save


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA"])
def test_modes_become_rgb(mode: str) -> None:
    image = picture(0).convert(mode)
    form = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    pixels = decode(encode(image, form), "x")
    assert pixels.shape == (24, 32, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_cmyk_jpeg() -> None:
    image = picture(0, 40, 40).convert("CMYK")
    pixels = decode(encode(image, "JPEG", quality=98), "x")
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB")).astype(int)).mean() < 3


def test_16_bit_grey_is_rounded_over_the_whole_range() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], dtype=np.uint16)
    pixels = decode(encode(Image.fromarray(values), "PNG"), "x")
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]


def test_exif_rotation_is_applied() -> None:
    image = picture(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode(encode(image, "PNG", exif=exif), "x")
    assert np.array_equal(pixels, np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


def test_transparency_is_flattened_on_white_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    image.paste((10, 20, 30, 255), (0, 0, 2, 4))
    with caplog.at_level(logging.WARNING):
        pixels = decode(png(image), "logo.png")
    assert pixels[0].tolist() == [[10, 20, 30]] * 2 + [[255, 255, 255]] * 2
    assert "logo.png: transparent parts are flattened on white" in caplog.text


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 50, 60, 70])
    image.putdata([0, 1])
    assert decode(encode(image, "PNG", transparency=0), "x")[0].tolist() == [[255, 255, 255], [50, 60, 70]]


def test_an_opaque_alpha_channel_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    decode(png(picture(0).convert("RGBA")), "x")
    assert not caplog.records


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    assert decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")[0, 0].tolist() == [255, 0, 0]


WHOLE = png(picture(0, 60, 60))
FLOATS = encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
INTEGERS = encode(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "zero bytes"),
        (b"hello", "not an image"),
        (WHOLE[: len(WHOLE) // 2], "truncated"),
        (encode(picture(0, 90, 90), "JPEG")[:700], "truncated"),
        (WHOLE[:40] + b"\0" * 40 + WHOLE[80:], "x.png: "),
        (FLOATS, "floating-point"),
        (INTEGERS, "32-bit"),
    ],
)
def test_what_cannot_be_read_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^x.png: .*{reason.removeprefix('x.png: ')}"):
        decode(content, "x.png")


def test_a_folder_named_as_an_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.png"):
        decode(tmp_path, "a.png")


def test_find_images_sorts_and_passes_over_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.png", ".hidden/d.png", ".e.png", "__MACOSX/f.png"):
        save(tmp_path / name, 0)
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == ["a/c.png", "b.JPG"]
    assert find_images(tmp_path / "b.JPG") == [tmp_path / "b.JPG"]


def test_an_empty_or_absent_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image below this folder \(looked for"):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_images(tmp_path / "absent")
