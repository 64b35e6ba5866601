"""The doctor finds what is planted, says what to do, and is content with a sound set."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.photos import TRAIN, VAL, bundled
from datamodules.prepare.doctor import main, parse, report
from datamodules.prepare.pack import pack_folder
from datamodules.prepare.similarity import displacement, near_duplicates, perceptual_hash
from tests.datamodules.trees import picture, png, save, write_tar


def photographs(root: Path, count: int = 4, first: int = 0) -> Path:
    for index in range(first, first + count):
        save(root / f"{index:04d}.png", index, 96, 120)
    return root


def said(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[bool, str]:
    serious = report(parse([*options, "--jobs", "1"]))
    return serious, capsys.readouterr().out


def test_a_sound_set_gets_no_remark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serious, text = said(capsys, str(photographs(tmp_path)), "--crop", "64")
    assert not serious and text.strip().startswith(f"{tmp_path}: 4 samples, 0 remarks\nready: ")


def test_the_command_exits_with_1_if_something_is_wrong(tmp_path: Path) -> None:
    sound = [str(photographs(tmp_path)), "--jobs", "1", "--crop"]
    main([*sound, "64"])
    with pytest.raises(SystemExit) as caught:
        main([*sound, "100"])
    assert caught.value.code == 1
    with pytest.raises(SystemExit, match=r"^error: .*none: no such file or folder of images"):
        main([str(tmp_path / "none")])


def test_shards_against_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack_folder(str(photographs(tmp_path / "in")), str(tmp_path / "out"), "set", per_shard=2, workers=1)
    serious, text = said(capsys, str(tmp_path / "out"), "--crop", "64", "--ranks", "2", "--workers", "4")
    assert not serious
    assert "note: 4 samples for 8 processes" in text
    assert "note: 2 shards for 8 processes: every sample is still seen once an epoch, but" in text
    assert "--per_shard" in text


def test_damage_size_mode_and_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clear = picture(3, 96, 120).convert("RGBA")
    clear.putalpha(0)
    members = [
        ("a.hr.png", png(picture(0, 96, 120))),
        ("small.hr.png", png(picture(1, 20, 20))),
        ("grey.hr.png", png(picture(2, 96, 120).convert("L"))),
        ("clear.hr.png", png(clear)),
        ("empty.hr.png", b""),
    ]
    write_tar(tmp_path / "set-000000.tar", members)
    write_tar(tmp_path / "set-000001.tar", members[:1])
    cut = write_tar(tmp_path / "set-000002.tar", {"z.hr.png": png(picture(9, 96, 120)), "y.hr.png": b"0" * 9000})
    cut.write_bytes(cut.read_bytes()[:-12000])
    serious, text = said(capsys, f"{tmp_path}/set-*.tar", "--crop", "64", "--workers", "1")
    assert serious
    assert "1 samples (set/small) are below the crop of 64: lower `crop`, or pack with --crop 64 --leave" in text
    assert "note: 1 images are L" in text
    assert "PROBLEM: 1 images are RGBA with transparency" in text
    assert "zero bytes: repair or repack it" in text
    assert f"set-000001.tar a: {tmp_path}/set-000000.tar has this key too (duplicate key): repair or repack it" in text
    assert "set-000002.tar: holds 2 of 2 samples, truncated or not an uncompressed tar" in text


def test_shards_that_are_not_those_that_were_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack_folder(str(photographs(tmp_path / "in")), str(tmp_path / "out"), "set", per_shard=1, workers=1)
    cut, changed, *_ = (tmp_path / "out" / f"set-train-{number:06d}.tar" for number in range(4))
    cut.write_bytes(cut.read_bytes()[:-12000])
    with changed.open("r+b") as shard:
        shard.seek(150)
        shard.write(b"?")
    serious, text = said(capsys, str(tmp_path / "out"), "--crop", "64", "--workers", "1")
    assert serious and f"{tmp_path}/out/set-train: 4 samples, " in text
    assert f"PROBLEM: {changed}: " in text
    assert f"PROBLEM: {cut}: " in text and "set-train-000002" not in text
    cut.unlink()
    with pytest.raises(FileNotFoundError, match=r"set-train-000000\.tar \(1 of 4 are missing\)"):
        said(capsys, str(tmp_path / "out"))


def test_a_bit_that_changed_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack_folder(str(photographs(tmp_path / "in", 1)), str(tmp_path / "out"), "set", workers=1)
    path = tmp_path / "out" / "set-train-000000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b'"source"') + 2] ^= 1  # in the sample's description, which nothing decodes
    path.write_bytes(content)
    serious, text = said(capsys, str(tmp_path / "out"), "--crop", "64", "--workers", "1")
    assert serious and f"PROBLEM: {path}: its bytes are not those that were packed: copy, fetch or" in text


def test_splits_of_one_folder_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        pack_folder(str(photographs(tmp_path / split, 2)), str(tmp_path / "out"), "set", split, workers=1)
    serious, text = said(capsys, str(tmp_path / "out"), "--crop", "64", "--workers", "1")
    out = tmp_path / "out"
    assert serious and f"PROBLEM: set/0000 of {out}/set-train and set/0000 of {out}/set-val look the same" in text


def test_sub_images_are_not_taken_for_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = photographs(tmp_path / "in")
    pack_folder(str(whole), str(tmp_path / "out"), "set", crop=48, step=24, workers=1)
    _, text = said(capsys, str(tmp_path / "out"), "--against", str(whole), "--crop", "48", "--workers", "1")
    assert "note: " in text and "sub-images do not look like whole ones; compare what was packed" in text


def test_copies_within_a_set_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("0", "1", "2", "3", "sky_s001", "sky_s002"):
        save(tmp_path / f"{name}.png", 9 if "sky" in name else 0, 96, 120)
    serious, text = said(capsys, str(tmp_path), "--crop", "64")
    assert not serious and "note: 6 pairs of images look the same (0 and 1, " in text  # not neighbours in one image


def test_pairs_that_are_shifted_or_of_another_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hr = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    hr = hr.resize((120, 120), Image.Resampling.BICUBIC)
    moved = hr.transform(hr.size, Image.Transform.AFFINE, (1, 0, 4, 0, 1, 0), Image.Resampling.BICUBIC)
    low = hr.resize((30, 30), Image.Resampling.BICUBIC)
    members = {
        "good.hr.png": png(hr),
        "good.lr.png": png(low),
        "moved.hr.png": png(hr),
        "moved.lr.png": png(moved.resize((30, 30), Image.Resampling.BICUBIC)),
        "other.hr.png": png(hr),
        "other.lr.png": png(hr.resize((60, 60))),
        "alone.hr.png": png(hr),
    }
    write_tar(tmp_path / "set-000000.tar", members)
    serious, text = said(capsys, str(tmp_path), "--crop", "64")
    assert serious and "moved) are shifted by more than 0.3 LR pixels: align the pairs again" in text
    assert "/good)" not in text and "/good," not in text
    assert "/other: HR (120, 120) and LR (60, 60) are no pair at scale 4: take it out" in text
    assert "1 of 4 samples have no LR partner: repack" in text


@pytest.mark.parametrize("pixels", [(0.0, 0.0), (0.5, 0.0), (1.0, -0.75)])
def test_displacement_is_measured_below_a_pixel(pixels: tuple[float, float]) -> None:
    hr = np.asarray(Image.open(bundled("coffee.png")).crop((100, 100, 340, 340)))
    right, down = (4 * value for value in pixels)
    moved = Image.fromarray(hr).transform(
        (240, 240), Image.Transform.AFFINE, (1, 0, right, 0, 1, down), Image.Resampling.BICUBIC
    )
    low = np.asarray(moved.resize((60, 60), Image.Resampling.BICUBIC))
    assert displacement(hr, low) == pytest.approx(float(np.hypot(*pixels)), abs=0.1)


def test_copies_between_training_and_test_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs(tmp_path / "train", 6)
    photographs(tmp_path / "test", 2, first=20)
    picture(4, 96, 120).resize((90, 72), Image.Resampling.LANCZOS).save(tmp_path / "test" / "copy.jpg", quality=70)
    serious, text = said(capsys, str(tmp_path / "train"), "--against", str(tmp_path / "test"), "--crop", "64")
    assert serious
    assert [line for line in text.splitlines() if "look the same" in line] == [
        f"PROBLEM: 0004 of {tmp_path}/train and copy of {tmp_path}/test look the same: take it out of one of them"
    ]


@pytest.mark.parametrize(("quality", "shrink"), [(95, 1.0), (70, 0.75), (50, 0.5)])
def test_hashes_know_copies_and_tell_others_apart(quality: int, shrink: float) -> None:
    shown = [Image.open(bundled(name)) for name in (*TRAIN, *VAL) if name != "motorcycle_right.png"]
    codes = [perceptual_hash(np.asarray(image)) for image in shown]
    for image in shown:
        content = io.BytesIO()
        small = image.resize((int(image.width * shrink), int(image.height * shrink)), Image.Resampling.LANCZOS)
        small.save(content, "JPEG", quality=quality)
        codes.append(perceptual_hash(np.asarray(Image.open(content))))
    assert set(near_duplicates(codes)) == {(number, number + len(shown)) for number in range(len(shown))}


def test_a_flat_image_has_no_hash() -> None:
    assert perceptual_hash(np.full((40, 40, 3), 7, np.uint8)) is None


def test_an_absent_set_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder of images"):
        report(parse([str(tmp_path / "none")]))
