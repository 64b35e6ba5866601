"""Every property of awkward photographs, compared out: what the files hold is read by other code than the project's."""

import logging
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from datamodules.images import HEIC, RAW, SUFFIXES
from datamodules.photograph import Photograph, read_photograph, write_photograph
from lightning_modules.enlarging.command import main
from tests.datamodules.trees import DISPLAY_P3, picture
from tests.lightning_modules.enlarging.awkward import (
    AWKWARD,
    IPTC,
    LATIN,
    XMP,
    Expected,
    deep,
    exif,
    make,
    photoshop,
    plain,
    transparent,
)
from tests.lightning_modules.enlarging.copying import SCALE, checkpoint

RESULTS = {LATIN: "caf%E9.png", "folder.png": "folder.png/inside.png", "alpha.png": "alpha.png.png"}
RESULTS |= {"alpha.webp": "alpha.webp.png"}


class Done:
    """What a run over all of them left and said."""

    def __init__(self, root: Path, code: int, said: str) -> None:
        self.root, self.code, self.said = root, code, said

    def result(self, name: str) -> Path:
        return self.root / "out" / RESULTS.get(name, f"{name.rpartition('.')[0]}.png")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    root = tmp_path_factory.mktemp("awkward")
    make(root / "in")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        typed = [str(root / "in"), "-o", str(root / "out"), "--ckpt", checkpoint(root / "copy.ckpt")]
        code = main([*typed, "--tile", "256", "--device", "cpu"])
    finally:
        logging.getLogger().removeHandler(handler)
    return Done(root, code, "\n".join(said))


def pixels_of(path: Path) -> Any:
    """All bits of a file, by its format's own decoder."""
    if path.suffix == ".png":
        return imagecodecs.png_decode(path.read_bytes())
    return tifffile.imread(path)


GOOD = [name for name, (_, expected) in AWKWARD.items() if not expected.failure]


@pytest.mark.parametrize("name", GOOD)
def test_size_mode_depth_profile_and_colours(name: str, done: Done) -> None:
    expected = AWKWARD[name][1]
    result = done.result(name)
    with Image.open(result) as image:
        assert (image.size, image.mode) == (expected.size, expected.mode)
        assert image.info.get("icc_profile") == expected.profile
        assert image.getexif().get(0x0112, 1) == 1
        assert image.format == "PNG"
    pixels = pixels_of(result)
    assert pixels.dtype.itemsize * 8 == expected.bits
    assert expected.said in done.said
    compare(done.root / "in" / name, result, expected)


def compare(source: Path, result: Path, expected: Expected) -> None:
    """Each pixel of the file, in the file's own colours, is found SCALE x SCALE times in the result."""
    source = source / "inside.png" if source.is_dir() else source
    with Image.open(source) as image:
        raw = tifffile.imread(source) if source.suffix == ".tif" and expected.bits == 16 else None
        if raw is not None and raw.shape[0] == 3:
            raw = np.moveaxis(raw, 0, -1)
        if source.suffix == ".png" and expected.bits == 16:
            raw = imagecodecs.png_decode(source.read_bytes())
            raw = raw.swapaxes(0, 1) if source.stem.startswith("mirrored") else raw
        upright = ImageOps.exif_transpose(image)
        before = np.asarray(upright.convert(expected.mode)) if raw is None else raw
    after = pixels_of(result)
    repeated = before.repeat(SCALE, axis=0).repeat(SCALE, axis=1).astype(int)
    assert after.shape == repeated.shape
    tolerance = expected.tolerance * (257 if expected.bits == 16 else 1)
    transparent = expected.mode in ("RGBA", "LA")
    colours, opacity = (np.s_[..., :-1], np.s_[..., -1]) if transparent else (np.s_[...], None)
    if opacity is None:
        assert np.abs(after - repeated).max() <= tolerance
        return

    # What is not seen may have another colour; transparency is resampled smoothly.
    seen = repeated[opacity] > 0
    assert np.abs(after - repeated)[colours][seen].max() <= tolerance
    white = 65535 if expected.bits == 16 else 255
    assert np.abs(after[opacity] - repeated[opacity]).mean() < white / 25
    assert after[opacity].min() < white / 10, "what was transparent is not"


@pytest.mark.parametrize("name", [name for name in AWKWARD if name not in GOOD])
def test_what_cannot_be_read_is_named_and_leaves_no_file(name: str, done: Done) -> None:
    assert AWKWARD[name][1].failure in done.said
    assert not done.result(name).exists() and done.code == 1


def test_all_the_others_are_there_and_nothing_else(done: Done) -> None:
    found = {path.relative_to(done.root / "out") for path in (done.root / "out").rglob("*") if path.is_file()}
    assert found == {done.result(name).relative_to(done.root / "out") for name in GOOD}


def test_what_is_passed_over_is_named_with_what_would_read_it(done: Done) -> None:
    assert "1 .txt (no image format that is looked for)" in done.said
    for suffix, extra in ((".heic", "heic"), (".cr2", "raw")):
        if suffix not in SUFFIXES:
            assert f"1 {suffix} (pip install 'diffsr[{extra}]' reads them)" in done.said


@pytest.mark.skipif(bool((HEIC | RAW) & SUFFIXES), reason="readers of HEIC or raw files are installed")
@pytest.mark.parametrize(("suffix", "extra"), [(".heic", "heic"), (".nef", "raw"), (".dng", "raw")])
def test_a_file_that_is_named_and_not_read_says_what_to_install(
    suffix: str, extra: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(0).save(tmp_path / "preview.tif")
    path = (tmp_path / "preview.tif").rename(tmp_path / f"photo{suffix}")
    if suffix == ".heic":
        path.write_bytes(b"\0\0\0\x18ftypheic")
    code = main([str(path), "-o", str(tmp_path / "out"), "--ckpt", checkpoint(tmp_path / "copy.ckpt")])
    assert code == 1 and f"pip install 'diffsr[{extra}]'" in capsys.readouterr().err


def test_raw_files_are_developed_with_16_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Raw:
        LibRawError = OSError

        @staticmethod
        def imread(file: Any) -> "Raw":
            assert file.read() == b"raw"
            return Raw()

        def __enter__(self) -> "Raw":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def postprocess(self, use_camera_wb: bool, output_bps: int) -> np.ndarray:
            assert use_camera_wb and output_bps == 16
            return deep()

    monkeypatch.setitem(sys.modules, "rawpy", Raw)
    monkeypatch.setattr("datamodules.images._RAW_READ", RAW)
    (tmp_path / "a.NEF").write_bytes(b"raw")
    photograph = read_photograph(tmp_path / "a.NEF", "a")
    assert photograph.depth == 16 and np.array_equal(photograph.colours, deep())


# Metadata, in each format.


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("weights") / "copy.ckpt")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff"])
@pytest.mark.parametrize("bits", [8, 16])
def test_metadata_are_kept_by_each_format(suffix: str, bits: int, weights: str, tmp_path: Path) -> None:
    source, result = tmp_path / "plain.jpg", tmp_path / f"large{suffix}"
    plain(source)
    if bits == 16:  # the same as a TIFF of 16 bits, which a first run writes
        deeper = tmp_path / "deep.tif"
        made = read_photograph(source, "plain")
        write_photograph(replace(made, colours=deep()), deeper, form="tiff")
        source = deeper
    assert main([str(source), "-o", str(result), "--ckpt", weights]) == 0
    with Image.open(result) as image:
        image.load()
        assert image.size == (64, 48)
        found, wanted = image.getexif(), exif()
        assert (found[0x010F], found[0x0132]) == (wanted[0x010F], wanted[0x0132])
        details = found.get_ifd(0x8769)
        assert float(details[0x829A]) == pytest.approx(0.008) and details[0x9003] == "2020:01:02 03:04:05"
        assert 0xA002 not in details and 0xA003 not in details, "the size of the file it came from"
        assert [float(value) for value in found.get_ifd(0x8825)[2]] == [48.0, 1.0, 2.0]
        dpi = image.info.get("dpi") or (found[0x011A], found[0x011B])
        assert [float(value) for value in dpi] == pytest.approx([300, 300], abs=0.01)
        xmp = image.tag_v2[700] if suffix == ".tiff" else image.info["xmp"]  # type: ignore[attr-defined]
        assert xmp == XMP
        if suffix == ".jpg":
            assert image.info["photoshop"][0x0404] == IPTC  # type: ignore[index]
        elif suffix == ".tiff":
            assert image.tag_v2[33723] == IPTC  # type: ignore[attr-defined]
    if suffix == ".png":
        assert read_photograph(result, "large").iptc == IPTC
    kept = bits == 16 and suffix in (".png", ".tiff")
    assert read_photograph(result, "large").depth == (16 if kept else 8)


@pytest.mark.parametrize("name", GOOD)
def test_a_tiff_holds_the_pixels_that_a_png_does(name: str, done: Done, tmp_path: Path) -> None:
    photograph = read_photograph(done.result(name), name)
    write_photograph(photograph, tmp_path / "a.tif", form="tiff")
    png, tiff = (pixels.astype(int) for pixels in (pixels_of(done.result(name)), tifffile.imread(tmp_path / "a.tif")))
    assert tiff.shape == png.shape and np.abs(tiff - png).max() <= AWKWARD[name][1].tolerance, "profiles round"
    with Image.open(tmp_path / "a.tif") as image:
        assert image.info.get("icc_profile") == AWKWARD[name][1].profile


def test_what_a_format_cannot_hold_is_said(weights: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain(tmp_path / "a.jpg")
    transparent(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(imagecodecs.png_encode(deep()))
    assert main([str(tmp_path), "-o", str(tmp_path / "webp"), "--format", "webp", "--ckpt", weights]) == 0
    assert "its IPTC record is left out, for which webp has no place" in caplog.text
    assert "webp holds 8 bits a channel; 16 are kept by png and tiff" in caplog.text
    typed = [str(tmp_path / "b.png"), "-o", str(tmp_path / "b.jpg"), "--ckpt", weights, "--quality", "100"]
    assert main(typed) == 0
    assert "transparent parts are flattened on white, which jpg cannot hold" in caplog.text
    with Image.open(tmp_path / "b.jpg") as image:
        assert min(image.getpixel((63, 24))) > 245, "not white where nothing is seen"


def test_colours_of_the_profile_or_srgb(weights: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 90, 60)).save(tmp_path / "p3.png", icc_profile=DISPLAY_P3)
    for colours, profile, expected in (("source", DISPLAY_P3, (200, 90, 60)), ("srgb", None, (216, 81, 49))):
        result = tmp_path / f"{colours}.png"
        assert main([str(tmp_path / "p3.png"), "-o", str(result), "--colours", colours, "--ckpt", weights]) == 0
        with Image.open(result) as image:
            assert image.info.get("icc_profile") == profile
            assert np.abs(np.asarray(image).astype(int) - expected).max() <= 2


def test_what_is_not_seen_does_not_bleed(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (200, 100, 50, 255)  # the rest is black and not seen, as editors leave it
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_photograph(tmp_path / "a.png", "a").colours, np.broadcast_to((200, 100, 50), (8, 8, 3)))


def test_metadata_that_are_too_long_for_jpeg_cost_no_photograph(
    weights: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = exif()
    long.get_ifd(0x8769)[0x927C] = b"m" * 70_000
    made = Photograph("a", deep(), exif=long, xmp=XMP + b" " * 70_000, iptc=IPTC * 8_000)
    for form in ("tiff", "jpg"):
        write_photograph(made, tmp_path / f"a.{form}", form=form)
    again = read_photograph(tmp_path / "a.tiff", "a")
    assert (again.xmp, again.iptc) == (made.xmp, made.iptc) and again.exif is not None
    assert again.exif.get_ifd(0x8769)[0x927C] == b"m" * 70_000
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.size == (32, 24) and "xmp" not in image.info and "photoshop" not in image.info
    for part in ("EXIF", "XMP", "IPTC record"):
        assert f"a: its {part} is longer than jpg can hold and is left out" in caplog.text


def test_damaged_exif_costs_no_photograph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(0).save(tmp_path / "a.jpg", exif=exif(6), quality=95)
    content = (tmp_path / "a.jpg").read_bytes()
    place = content.index(b"MM\0*") if b"MM\0*" in content else content.index(b"II*\0")
    (tmp_path / "a.jpg").write_bytes(content[: place + 8] + b"\xff" * 60 + content[place + 68 :])
    photograph = read_photograph(tmp_path / "a.jpg", "a")
    assert photograph.colours.shape in ((24, 32, 3), (32, 24, 3))
    write_photograph(photograph, tmp_path / "b.jpg", form="jpg")


def test_iptc_of_other_programs_is_found(tmp_path: Path) -> None:
    """A record after other resources of Photoshop's, as editors write it."""
    other = b"8BIM" + struct.pack(">H", 0x0425) + b"\0\0" + struct.pack(">I", 4) + b"abcd"
    content = b"Photoshop 3.0\0" + other + photoshop(IPTC)[4 + len(b"Photoshop 3.0\0") :]
    segment = b"\xff\xed" + struct.pack(">H", 2 + len(content)) + content
    picture(0).save(tmp_path / "a.jpg", extra=segment)
    assert read_photograph(tmp_path / "a.jpg", "a").iptc == IPTC
