"""Packing: whole or cut, alone or in pairs, resumable, byte-identical, and no half shard on a full disk."""

import hashlib
import json
import os
import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images import decode
from datamodules.prepare.pack import PUBLISHED, main, pack_folder
from datamodules.prepare.plan import plan
from datamodules.prepare.samples import PlannedImage, PlannedSample, encode, tiles
from datamodules.prepare.shard_writer import PackError, SplitSettings, write_split
from datamodules.stream.shards import open_split, read_index
from datamodules.stream.sources import DataError
from tests.datamodules.trees import picture, save

ROOT = Path(__file__).resolve().parents[3]
PACK = "from datamodules.prepare.pack import main; main()"


def folder_of(root: Path, count: int = 5, height: int = 40, width: int = 52) -> Path:
    for index in range(count):
        save(root / f"{index:04d}.png", index, height, width)
    return root


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name[0] != "."}


def members(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_names_counts_and_digests(tmp_path: Path) -> None:
    pack_folder(
        str(folder_of(tmp_path / "in")), str(tmp_path / "out"), "set", "val", per_shard=2, licence="free", workers=1
    )
    (split,) = json.loads((tmp_path / "out" / "dataset.json").read_text())["splits"]
    assert {key: split[key] for key in ("name", "split", "licence", "samples")} == {
        "name": "set",
        "split": "val",
        "licence": "free",
        "samples": 5,
    }
    assert [shard["samples"] for shard in split["shards"]] == [2, 2, 1]
    for number, shard in enumerate(split["shards"]):
        content = (tmp_path / "out" / shard["file"]).read_bytes()
        assert shard["file"] == f"set-val-{number:06d}.tar"
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert members(tmp_path / "out" / "set-val-000002.tar") == ["0004.hr.png", "0004.json"]


@pytest.mark.parametrize("words", [[], *([name] for name in PUBLISHED)], ids=lambda words: " ".join(words) or "folder")
def test_each_command_has_its_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: {' '.join(['lightning', 'pack', *words])} ") and "folder for the shards" in shown
    assert words or all(name in shown for name in PUBLISHED)


def test_two_splits_share_a_folder(tmp_path: Path) -> None:
    for split in ("val", "train"):
        pack_folder(str(folder_of(tmp_path / "in")), str(tmp_path / "out"), "set", split, workers=1)
    assert len(open_split(str(tmp_path / "out"), "set-val")) == len(open_split(str(tmp_path / "out"), "set-train")) == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_packing_again_gives_the_same_bytes(workers: int, tmp_path: Path) -> None:
    options = {"name": "set", "crop": 24, "step": 12, "per_shard": 8}
    for out in ("one", "two"):
        pack_folder(
            str(folder_of(tmp_path / "in")), str(tmp_path / out), workers=workers if out == "two" else 1, **options
        )  # type: ignore[arg-type]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_killed_run_goes_on_without_redoing_finished_shards(tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in"), tmp_path / "out"
    pack_folder(str(source), str(out), "set", per_shard=2, workers=1)
    whole = contents(out)
    (out / "dataset.json").unlink()
    (out / "set-train-000001.tar").unlink()
    (out / ".set-train-000001.tar.99.part").write_bytes(b"half")
    kept = (out / "set-train-000000.tar").stat().st_mtime_ns
    pack_folder(str(source), str(out), "set", per_shard=2, workers=1)
    assert contents(out) == whole
    assert (out / "set-train-000000.tar").stat().st_mtime_ns == kept
    assert not list(out.glob(".*.part"))


def test_other_settings_are_refused_and_replaced_on_request(tmp_path: Path) -> None:
    source, out = str(folder_of(tmp_path / "in")), str(tmp_path / "out")
    pack_folder(source, out, "set", per_shard=2, workers=1)
    with pytest.raises(PackError, match=r"holds set-train packed .* other settings; .* or set overwrite to true"):
        pack_folder(source, out, "set", per_shard=3, workers=1)
    pack_folder(source, out, "set", per_shard=3, overwrite=True, workers=1)
    assert [path for path in contents(tmp_path / "out") if path.endswith(".tar")] == [
        "set-train-000000.tar",
        "set-train-000001.tar",
    ]


def test_images_replaced_by_others_of_the_same_size_are_packed_anew(tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in"), str(tmp_path / "out")
    pack_folder(str(source), out, "set", workers=1)
    before = contents(tmp_path / "out")
    changed = bytearray((source / "0001.png").read_bytes())
    changed += changed[-12:]  # a second IEND: readable, and then another image of as many bytes
    (source / "0001.png").write_bytes(changed)
    pack_folder(str(source), out, "set", overwrite=True, workers=1)
    (source / "0001.png").write_bytes(changed[:-1] + b"?")
    with pytest.raises(PackError, match="packed from other files"):
        pack_folder(str(source), out, "set", workers=1)
    pack_folder(str(source), out, "set", overwrite=True, workers=1)
    assert open_split(out, "set-train").record(1).hr == bytes(changed[:-1] + b"?")
    assert contents(tmp_path / "out") != before


def test_overwriting_writes_anew_what_is_the_same(tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in"), tmp_path / "out"
    pack_folder(str(source), str(out), "set", workers=1)
    whole, shard = contents(out), out / "set-train-000000.tar"
    shard.write_bytes(b"spoilt by hand")
    pack_folder(str(source), str(out), "set", workers=1)
    assert shard.read_bytes() == b"spoilt by hand"
    pack_folder(str(source), str(out), "set", overwrite=True, workers=1)
    assert contents(out) == whole


@pytest.mark.parametrize("name", ["photos [2021]", "photos *", "a?", "[ab]"])
def test_a_name_with_marks_of_patterns_is_a_name(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack_folder(str(folder_of(tmp_path / name, 2)), str(out), workers=1)
    with pytest.raises(PackError, match="packed from other files or with other settings"):
        pack_folder(str(folder_of(tmp_path / name, 3)), str(out), workers=1)
    pack_folder(str(tmp_path / name), str(out), overwrite=True, per_shard=2, workers=1)
    assert len(open_split(str(out), f"{name}-train")) == 3
    pack_folder(str(tmp_path / name), str(out), overwrite=True, workers=1)
    assert [path.name for path in out.glob("*.tar")] == [f"{name}-train-000000.tar"]


@pytest.mark.parametrize("name", ["a/b", "a+b", "a.tar", ""])
def test_a_name_that_would_be_read_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(PackError, match=f"name: {name!r} is no name for a set".replace("+", r"\+")):
        pack_folder(str(folder_of(tmp_path / "in")), str(tmp_path / "out"), name, workers=1)


def test_what_was_packed_is_counted_without_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack_folder(str(bad_folder(tmp_path / "in")), str(tmp_path / "out"), "t", leave_out=True, crop=24, workers=1)
    packed = len(open_split(str(tmp_path / "out"), "t-train"))
    line = f"{packed} samples of t-train (7 images) are in {tmp_path}/out; left out: 3 images and "
    assert capsys.readouterr().out.startswith(line)
    pack_folder(str(bad_folder(tmp_path / "in")), str(tmp_path / "out"), "t", leave_out=True, crop=24, workers=1)
    assert capsys.readouterr().out.startswith(line), "a second time, when nothing is to be done"
    pack_folder(str(folder_of(tmp_path / "good")), str(tmp_path / "out"), "g", workers=1)
    assert capsys.readouterr().out == f"5 samples of g-train (5 images) are in {tmp_path}/out\n"


def test_a_cut_photograph_and_one_too_large_are_left_out_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "in", 2)
    picture(0, 200, 300).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    for number, kept in enumerate((3, 20, 160, 400, 900, len(whole) // 2)):
        (tmp_path / "in" / f"cut{number}.jpg").write_bytes(whole[:kept])
    Image.new("1", (4000, 1000)).save(tmp_path / "in" / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(PackError, match=r"cannot be packed \(set leave_out to true .*cut0\.jpg: not an image"):
        pack_folder(str(tmp_path / "in"), str(tmp_path / "out"), workers=1)
    pack_folder(str(tmp_path / "in"), str(tmp_path / "out"), leave_out=True, workers=1)
    assert [entry.key for entry in read_index(tmp_path / "out/in-train-000000.tar").entries] == ["0000", "0001"]
    for name in (*(f"cut{number}.jpg: " for number in range(6)), "large.png: has more than 2 megapixels"):
        assert name in caplog.text


def test_names_that_are_not_utf8_are_packed(tmp_path: Path) -> None:
    save(tmp_path / os.fsdecode(b"in\xff") / os.fsdecode(b"caf\xe9.png"), 0)
    pack_folder(str(tmp_path / os.fsdecode(b"in\xff")), str(tmp_path / "out"), workers=1)
    assert open_split(str(tmp_path / "out"), "in%FF-train").record(0).key == "in%FF/caf%E9"


def test_shards_of_a_killed_replacement_are_not_taken_for_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for name, first in (("old", 0), ("new", 9)):
        for index in range(5):
            save(tmp_path / name / f"{index:04d}.png", first + index, 40, 52)
    pack_folder(str(tmp_path / "old"), str(out), "set", per_shard=2, workers=1)
    old = contents(out)

    def killed_late(image: PlannedImage) -> tuple[str, bytes]:
        if image.path.stem == "0004":
            raise KeyboardInterrupt
        return encode(image)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("datamodules.prepare.shard_writer.encode", killed_late)
        pack_folder(str(tmp_path / "new"), str(out), "set", per_shard=1, overwrite=True, workers=1)
    assert len(list(out.glob("*.tar"))) == 4
    with pytest.raises(FileNotFoundError, match="holds no set 'set-train'"):
        open_split(str(out), "set-train")
    pack_folder(str(tmp_path / "old"), str(out), "set", per_shard=2, overwrite=True, workers=1)
    assert contents(out) == old


def test_a_full_disk_leaves_no_half_shard(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 6, 200, 200)
    limit = 60_000  # bytes a file may have: the stand-in for a full disk

    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-c", PACK, "in", "out", "--name", "set", "--workers", "1"]
    # Python would cut off the files of compiled modules, too, which every later process reads.
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, preexec_fn=restrict, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: out/set-train-000000.tar: cannot be written: ")
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix in (".tar", ".part", ".json")]


def test_bytes_are_kept_where_they_can_be(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.jpg", quality=60)
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")  # the format counts, not the name
    assert encode(PlannedImage(tmp_path / "a.png")) == ("jpg", (tmp_path / "a.png").read_bytes())
    picture(1).save(tmp_path / "b.bmp")
    suffix, content = encode(PlannedImage(tmp_path / "b.bmp"))
    assert suffix == "png" and np.array_equal(decode(content, "b"), np.asarray(picture(1)))


def test_transparency_is_flattened_in_the_shard(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "a.png")
    assert (decode(encode(PlannedImage(tmp_path / "a.png"))[1], "a") == 255).all()


def test_a_face_is_resized_by_pillow(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0, 40, 40)
    expected = picture(0, 40, 40).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(decode(encode(PlannedImage(tmp_path / "a.png", side=16))[1], "a"), np.asarray(expected))
    assert encode(PlannedImage(tmp_path / "a.png", side=40))[1] == (tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("width", "height", "crop", "step"), [(2040, 1404, 480, 240), (480, 480, 480, 240), (50, 31, 8, 8)]
)
def test_tiles_cover_the_image(width: int, height: int, crop: int, step: int) -> None:
    boxes = list(tiles(width, height, crop, step))
    covered = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        assert (right - left, bottom - top) == (crop, crop)
        covered[top:bottom, left:right] = True
    assert covered.all() and len(set(boxes)) == len(boxes)


def test_div2k_is_cut_into_as_many_sub_images_as_everywhere() -> None:
    assert len(list(tiles(2040, 1356, 480, 240))) == 40  # 0001.png in BasicSR's extraction
    assert len(list(tiles(2040, 1356, 480, 240, grid=4))) == 40


def test_pairs_are_cut_at_the_same_place(tmp_path: Path) -> None:
    hr = picture(0, 42, 50)
    hr.save(save(tmp_path / "hr" / "0001.png", 0))
    hr.crop((0, 0, 48, 40)).resize((12, 10), Image.Resampling.BOX).save(save(tmp_path / "lr" / "0001x4.png", 0))
    partners = {tmp_path / "hr/0001.png": tmp_path / "lr/0001x4.png"}
    pieces = plan([tmp_path / "hr/0001.png"], tmp_path / "hr", partners, crop=16, step=8)
    assert len(pieces) == 20
    for piece in pieces:
        assert piece.hr.box and piece.lr and piece.lr.box == tuple(side // 4 for side in piece.hr.box)
        high, low = decode(encode(piece.hr)[1], "hr"), decode(encode(piece.lr)[1], "lr")
        mean = np.asarray(Image.fromarray(high).resize((4, 4), Image.Resampling.BOX))
        assert np.array_equal(mean, low)


PARTNERS = {
    "missing": (["0001.png", "0002.png"], ["0001x4.png"], (12, 10), DataError, "without a partner: .*0002.png"),
    "left over": (["0001.png"], ["0001x4.png", "0003x4.png"], (12, 10), DataError, "without a partner: .*0003x4.png"),
    "sizes": (
        ["0001.png"],
        ["0001x4.png"],
        (12, 11),
        PackError,
        "0001.png is 52x40 and .*0001x4.png is 12x11: no pair",
    ),
}


@pytest.mark.parametrize("case", PARTNERS)
def test_broken_pairs_are_named(case: str, tmp_path: Path) -> None:
    hr, lr, (width, height), error, message = PARTNERS[case]
    for name in hr:
        save(tmp_path / "hr" / name, 0, 40, 52)
    for name in lr:
        save(tmp_path / "lr" / name, 0, height, width)
    with pytest.raises(error, match=message):
        pack_folder(str(tmp_path / "hr"), str(tmp_path / "out"), lr=str(tmp_path / "lr"), workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("high", "low"), [("hr", "lr"), ("gt", "lq")])
def test_a_folder_of_pairs_is_packed_as_pairs(high: str, low: str, tmp_path: Path) -> None:
    for index in range(2):
        save(tmp_path / "in" / high / f"box{index}.png", index, 40, 52)
        save(tmp_path / "in" / low / f"box{index}.png", index, 10, 13)
    pack_folder(str(tmp_path / "in"), str(tmp_path / "out"), workers=1)
    sample = open_split(str(tmp_path / "out"), "in-train").sample(1, paired=True)
    assert sample.key == "in/box1" and sample.lr is not None and sample.lr.shape == (10, 13, 3)


def test_partners_that_cannot_be_told_apart_are_named(tmp_path: Path) -> None:
    for name in ("a/0001.png", "b/0001.png"):
        save(tmp_path / "hr" / name, 0, 40, 52)
        save(tmp_path / "lr" / name, 0, 10, 13)
    with pytest.raises(DataError, match=r"lr/a/0001\.png and .*lr/b/0001\.png have the same name: rename one"):
        pack_folder(str(tmp_path), str(tmp_path / "out"), workers=1)


def bad_folder(root: Path) -> Path:
    folder_of(root, 3)
    save(root / "small.png", 9, 10, 10)
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("hello")
    whole = (root / "0000.png").read_bytes()
    (root / "truncated.png").write_bytes(whole[: len(whole) // 2])
    return root


def test_all_bad_headers_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(PackError) as caught:
        pack_folder(str(bad_folder(tmp_path / "in")), str(tmp_path / "out"), crop=24, workers=1)
    message = str(caught.value)
    assert message.startswith("3 of 7 cannot be packed (set leave_out to true to continue without them): ")
    for part in ("empty.png: zero bytes", "small.png: 10x10 is below the crop of 24x24", "text.png: not an image"):
        assert part in message


def test_bad_images_are_left_out_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack_folder(str(bad_folder(tmp_path / "in")), str(tmp_path / "out"), "set", leave_out=True, crop=24, workers=1)
    keys = [entry.key for entry in read_index(tmp_path / "out" / "set-train-000000.tar").entries]
    assert {key.partition("_")[0] for key in keys} == {"0000", "0001", "0002"}
    assert len(open_split(str(tmp_path / "out"), "set-train")) == len(keys)
    for name in ("small", "empty", "text", "truncated"):
        assert name in caplog.text


def test_a_truncated_image_stops_the_packing_by_name(tmp_path: Path) -> None:
    bad_folder(tmp_path / "in")
    for name in ("small", "empty", "text"):
        (tmp_path / "in" / f"{name}.png").unlink()
    with pytest.raises(
        PackError, match=r"truncated\.png: .*truncated.*repair it, take it out, or set leave_out to true"
    ):
        pack_folder(str(tmp_path / "in"), str(tmp_path / "out"), workers=1)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_equal_keys_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", 0)
    with pytest.raises(PackError, match=r"have the same key 'a': rename one"):
        write_split(
            [PlannedSample("a", PlannedImage(path)), PlannedSample("a", PlannedImage(path))],
            tmp_path / "out",
            SplitSettings("set", "train"),
        )


def test_names_with_dots_and_folders_become_keys(tmp_path: Path) -> None:
    for name in ("a/x.y.png", "b/x.png", "b/x.bmp"):
        save(tmp_path / "in" / name, 0)
    pack_folder(str(tmp_path / "in"), str(tmp_path / "out"), "set", workers=1)
    source = open_split(str(tmp_path / "out"), "set-train")
    assert [source.record(index).key for index in range(3)] == ["set/a/x_y", "set/b/x_bmp", "set/b/x_png"]
    for name in ("same.png", "same.jpg", "same.jpg.png", "same_jpg.png"):
        save(tmp_path / "same" / name, 0)
    pack_folder(str(tmp_path / "same"), str(tmp_path / "out"), "same", workers=1)
    source = open_split(str(tmp_path / "out"), "same-train")
    keys = ["same/same_jpg", "same/same_jpg_png", "same/same_png", "same/same_jpg_png-2"]
    assert [source.record(index).key for index in range(4)] == keys


def test_an_empty_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(FileNotFoundError, match="no image below this folder"):
        pack_folder(str(tmp_path / "in"), str(tmp_path / "out"))
