"""Any file a camera or an editor writes becomes upright 8-bit RGB; what cannot is named."""

import io
import logging
import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images import ImageError, decode, find_images, image_size, storable_suffix
from datamodules.photograph import read_photograph
from datamodules.photos import bundled
from tests.datamodules.trees import DISPLAY_P3, picture, png, save


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


# Formats.


@pytest.mark.parametrize("name", ["a.avif", "a.jp2", "a.j2k", "a.jfif", "a.JPE", "a.pnm", "a.tga", "a.qoi", "a.apng"])
def test_a_folder_is_searched_for_every_format_that_is_read_as_a_file(name: str, tmp_path: Path) -> None:
    picture(0).save(tmp_path / name, format="JPEG" if name.lower().endswith(("jfif", "jpe")) else None)
    assert find_images(tmp_path) == [tmp_path / name]
    assert np.abs(decode(tmp_path / name, name).astype(int) - np.asarray(picture(0))).mean() < 8


@pytest.mark.skipif(find_spec("pillow_heif") is None, reason="pillow-heif is not installed")
def test_photographs_of_iphones_are_read(tmp_path: Path) -> None:
    picture(0, 64, 80).save(tmp_path / "a.heic", format="HEIF", quality=95)
    assert find_images(tmp_path) == [tmp_path / "a.heic"]
    assert np.abs(decode(tmp_path / "a.heic", "a").astype(int) - np.asarray(picture(0, 64, 80))).mean() < 4


def test_what_is_passed_over_is_counted_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "a.png", 0)
    for name in ("b.psd", "c.psd", "notes.txt", "sub/Makefile"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with caplog.at_level(logging.WARNING):
        assert find_images(tmp_path) == [tmp_path / "a.png"]
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"{tmp_path}: 5 files are passed over: ")
    for part in ("2 .psd (no image format", "1 broken links", "1 .txt (no image", "1 without a suffix (no image"):
        assert part in said
    for reader, suffix, extra in (("pillow_heif", "heic", "heic"), ("rawpy", "cr2", "raw")):
        if find_spec(reader) is None:
            (tmp_path / f"d.{suffix}").write_bytes(b"x")
            find_images(tmp_path)
            assert f"1 .{suffix} (pip install 'diffsr[{extra}]' reads them)" in caplog.text


def test_linked_folders_are_followed_and_a_circle_ends(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "b.png", 0)
    save(tmp_path / "in" / "a.png", 0)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    found = [path.relative_to(tmp_path / "in").as_posix() for path in find_images(tmp_path / "in")]
    assert found == ["a.png", "link/b.png"]


def test_pages_beyond_the_first_are_said(caplog: pytest.LogCaptureFixture) -> None:
    pages = [picture(seed) for seed in range(3)]
    for form in ("TIFF", "GIF", "WEBP", "PNG"):
        decode(encode(pages[0], form, save_all=True, append_images=pages[1:]), f"x.{form}")
        assert f"x.{form}: holds 3 pages or frames; only the first is read" in caplog.text
    caplog.clear()
    decode(encode(pages[0], "MPO", save_all=True, append_images=pages[1:2]), "camera.jpg")
    assert not caplog.records


# Colours.


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("TIFF", "RGB"), ("WEBP", "RGB")]
)
def test_a_colour_profile_is_converted_to_srgb(form: str, mode: str) -> None:
    image = Image.new("RGB", (8, 8), (234, 51, 35))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = decode(encode(image, form, icc_profile=DISPLAY_P3, **options), "x")
    assert np.abs(pixels[0, 0].astype(int) - (255, 0, 0)).max() <= 4, "the red of sRGB, as Display P3 writes it"
    white = decode(encode(Image.new("RGB", (8, 8), "white"), "PNG", icc_profile=DISPLAY_P3), "x")
    assert white.min() >= 254


def test_transparency_lies_over_converted_colours() -> None:
    image = Image.new("RGBA", (8, 8), (234, 51, 35, 128))
    pixels = decode(encode(image, "PNG", icc_profile=DISPLAY_P3), "x")
    assert np.abs(pixels[0, 0].astype(int) - (255, 127, 127)).max() <= 4


def test_adobe_rgb_of_a_real_photograph_is_converted_and_srgb_is_left_alone() -> None:
    with Image.open(bundled("rocket.jpg")) as image:  # Adobe RGB (1998)
        plain = np.asarray(image).astype(int)
    saturation = np.ptp(decode(bundled("rocket.jpg"), "x").astype(int), axis=2).mean() / np.ptp(plain, axis=2).mean()
    assert 1.1 < saturation < 1.6, "a wide space writes the same colours with less extreme numbers"
    with Image.open(bundled("chelsea.png")) as image:  # sRGB IEC61966-2.1
        assert image.info["icc_profile"]
        assert np.array_equal(decode(bundled("chelsea.png"), "x"), np.asarray(image))


def test_a_grey_profile_is_converted_and_only_for_grey_images(caplog: pytest.LogCaptureFixture) -> None:
    with Image.open(bundled("page.png")) as image:  # dot gain 20 %
        profile, plain = image.info["icc_profile"], np.asarray(image)
    pixels = decode(bundled("page.png"), "x")
    assert (pixels[..., 0] == pixels[..., 1]).all() and np.abs(pixels[..., 0].astype(int) - plain).max() > 5
    assert not caplog.records
    colour = decode(encode(picture(0), "PNG", icc_profile=profile), "odd.png")
    assert np.array_equal(colour, np.asarray(picture(0)))
    assert "odd.png: its colour profile cannot be used (it is for L, the image is RGB); it is read as s" in caplog.text


def test_a_damaged_profile_is_said_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    pixels = decode(encode(picture(0), "PNG", icc_profile=b"no profile" * 20), "odd.png")
    assert np.array_equal(pixels, np.asarray(picture(0)))
    assert "odd.png: its colour profile cannot be used" in caplog.text


def test_a_camera_that_says_adobe_rgb_without_a_profile_is_named(caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    decode(encode(picture(0), "JPEG", exif=exif), "camera.jpg")
    assert "camera.jpg: says that it is Adobe RGB, but embeds no colour profile" in caplog.text


def test_the_profile_of_a_file_can_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(picture(0), "PNG", icc_profile=DISPLAY_P3))
    assert read_photograph(tmp_path / "a.png", "a").profile == DISPLAY_P3
    assert read_photograph(save(tmp_path / "b.png", 0), "b").profile is None


# Damage.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "JPEG2000"])
def test_whatever_is_wrong_with_a_file_is_one_error_that_names_it(form: str, tmp_path: Path) -> None:
    whole, draw, path = encode(picture(0), form), random.Random(0), tmp_path / "x"
    for number in range(60):
        harmed = bytearray(whole[: draw.randrange(1, len(whole))] if number % 2 else whole)
        for _ in range(draw.randrange(6)):
            harmed[draw.randrange(len(harmed))] = draw.randrange(256)
        path.write_bytes(harmed)
        for read in (lambda: decode(path, str(path)), lambda: image_size(path), lambda: storable_suffix(path)):
            try:
                read()
            except ImageError as error:
                assert str(error).startswith(f"{path}: ")


def test_200_megapixels_are_read_and_what_is_too_much_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "panorama.png"
    Image.new("1", (20_000, 10_000)).save(path)
    assert image_size(path) == (20_000, 10_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90_000_000)
    for read in (image_size, storable_suffix, lambda path: decode(path, str(path))):
        with pytest.raises(ImageError, match=r"panorama\.png: has more than 180 megapixels; cut it into parts"):
            read(path)
