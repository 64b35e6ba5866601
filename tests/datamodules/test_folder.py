"""The user's own images: training from plain folders, and enlarging whatever lies in one."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.image_metrics import ImageMetrics
from datamodules.batch import Batch
from datamodules.folder import Folder
from datamodules.prepare import doctor
from datamodules.prepare.pack import pack_folder
from datamodules.shard_folder import ShardFolder
from datamodules.stream.sources import unique_keys
from tests.callbacks.small import SmallResolver, trainer_of
from tests.datamodules.trees import picture, save


def awkward(root: Path) -> Path:
    save(root / "odd.png", 0, 7, 13)
    picture(1).convert("L").save(save(root / "grey.png", 1))
    picture(2).convert("RGBA").save(save(root / "alpha.png", 2))
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(15, 20) * 200).save(save(root / "deep.png", 3))
    picture(4).convert("CMYK").save(save(root / "sub" / "cmyk.jpg", 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(5).save(save(root / "turned.jpg", 5), exif=exif)
    picture(6).convert("P").save(save(root / "palette.png", 6))
    return root


SIZES = {
    "alpha": (24, 32),
    "deep": (15, 20),
    "grey": (24, 32),
    "odd": (7, 13),
    "palette": (24, 32),
    "sub/cmyk": (24, 32),
    "turned": (32, 24),
}


def enlarged(data: Folder) -> dict[str, tuple[int, ...]]:
    sizes = {}
    for raw in data.predict_dataloader():
        batch = data.on_after_batch_transfer(raw, 0)
        height, width = batch["lr"].shape[-2:]
        assert "hr" not in batch
        assert batch["up"].shape == (1, 3, height * data.scale, width * data.scale)
        assert float(batch["lr"].min()) >= -1 and float(batch["lr"].max()) <= 1
        sizes[batch["key"][0]] = (height, width)
    return sizes


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_any_image_can_be_enlarged(scale: int, tmp_path: Path) -> None:
    data = Folder(predict=str(awkward(tmp_path)), scale=scale)
    assert enlarged(data) == SIZES
    assert data.failures == {}


def test_a_single_file(tmp_path: Path) -> None:
    assert enlarged(Folder(predict=str(awkward(tmp_path) / "odd.png"))) == {"odd": (7, 13)}


def test_unreadable_images_are_named_and_the_rest_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    awkward(tmp_path)
    (tmp_path / "broken.png").write_bytes((tmp_path / "grey.png").read_bytes()[:80])
    (tmp_path / "empty.jpg").write_bytes(b"")
    data = Folder(predict=str(tmp_path))
    with caplog.at_level(logging.ERROR):
        assert enlarged(data) == SIZES
    assert [Path(path).name for path in data.failures] == ["broken.png", "empty.jpg"]
    assert "broken.png: " in caplog.text and "empty.jpg: zero bytes; left out" in caplog.text


def test_images_of_one_name_keep_their_suffix(tmp_path: Path) -> None:
    for name in ("cat.png", "cat.jpg", "dog.png"):
        save(tmp_path / name, 0)
    assert list(enlarged(Folder(predict=str(tmp_path)))) == ["cat.jpg", "cat.png", "dog"]
    save(tmp_path / "cat.jpg.png", 0)
    assert list(enlarged(Folder(predict=str(tmp_path)))) == ["cat.jpg", "cat.jpg.png", "cat.png", "dog"]


def test_keys_are_all_different() -> None:
    def keys(*names: str, dot: str = ".") -> list[str]:
        return unique_keys([Path(name) for name in names], dot)

    assert keys("a/1.png", "b/1.png", "b/2.x.png") == ["a/1", "b/1", "b/2.x"]
    assert keys("a.b.png", "a_b.png", "a_b_png.x", dot="_") == ["a_b_png", "a_b_png-2", "a_b_png_x"]
    assert keys("x.png", "x.png", "x-2.png") == ["x.png", "x.png-2", "x-2"]
    latin = os.fsdecode(b"caf\xe9.png")
    assert keys(latin, "café.png") == ["caf%E9", "café"]
    assert keys(latin, "caf%E9.png") == ["caf%E9.png", "caf%E9.png-2"]


def test_names_that_are_not_utf8_can_be_trained_on_and_scored(tmp_path: Path) -> None:
    folder = tmp_path / "übung"
    for name in (b"caf\xe9.png", b"stra\xdfe.png"):
        save(folder / os.fsdecode(name), 0, 40, 44)
    data = Folder(train=str(folder), val=str(folder), crop=16, batch_size=2, num_workers=0)
    assert sorted(next(iter(data.train_dataloader()))["key"]) == ["übung/caf%E9", "übung/stra%DFe"]
    trainer_of(tmp_path / "run", ImageMetrics()).validate(SmallResolver(), data, verbose=False)
    assert "übung/caf%E9," in (tmp_path / "run/scores/val-step-000000.csv").read_text()


def test_several_inputs_keep_the_names_of_their_folders(tmp_path: Path) -> None:
    for name in ("a/x.png", "a/deep/y.png", "b/x.png", "x.png", "other/x.png"):
        save(tmp_path / name, 0)
    given = [str(tmp_path / name) for name in ("a", "b/", "x.png", "other/x.png", "a/x.png")]
    keys = list(enlarged(Folder(predict=given)))
    assert keys == ["a/deep/y", "a/x", "b/x", "x.png", "x.png-2"]


def test_home_is_found_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "photos" / "a.png", 0, 40, 40)
    assert list(enlarged(Folder(predict="~/photos"))) == list(enlarged(Folder(predict=["~/photos/a.png"]))) == ["a"]
    assert len(Folder(val="~/photos").source("val")) == 1
    pack_folder("~/photos", "~/packed", crop=16, workers=1)
    assert len(ShardFolder("~/packed", train="photos-train").source("train")) == 9
    assert doctor.report(doctor.parse(["~/packed", "--crop", "16", "--jobs", "1"])) is False


@pytest.mark.parametrize("given", ["", [], [""], ["photos", ""]])
def test_an_empty_input_is_not_the_current_folder(given: str | list[str]) -> None:
    with pytest.raises(FileNotFoundError, match="no images to enlarge: predict is empty; set predict to their folder"):
        Folder(predict=given).predict_dataloader()
    with pytest.raises(FileNotFoundError, match="no images to train on: train is empty"):
        Folder(train="").train_dataloader()


@pytest.mark.parametrize("batches", [1, 2])
def test_overfitting_repeats_the_first_batches(batches: int, tmp_path: Path) -> None:
    for index in range(8):
        save(tmp_path / "photos" / f"{index}.png", index, 40, 44)
    photos = str(tmp_path / "photos")
    data = Folder(train=photos, val=photos, scale=2, crop=32, val_crop=32, batch_size=2, num_workers=0)
    seen: list[tuple[list[str], float]] = []

    class Watching(SmallResolver):
        def training_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
            seen.append((batch["key"], float(batch["hr"].sum())))
            return super().training_step(batch, batch_idx)

    trainer_of(tmp_path, overfit_batches=batches, max_steps=5, max_epochs=-1).fit(Watching(), data)
    assert len(seen) == 5 and seen == [seen[index % batches] for index in range(5)]
    assert batches == 1 or seen[0] != seen[1]


def test_training_and_validation_from_folders(tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path / "holiday" / f"{index}.png", index, 40, 44)
    data = Folder(train=str(tmp_path / "holiday"), val=str(tmp_path / "holiday"), crop=16, batch_size=3, num_workers=0)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["hr"].shape == (3, 3, 16, 16) and sorted(batch["key"]) == ["holiday/0", "holiday/1", "holiday/2"]
    first = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    shown = ((first["hr"][0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    assert np.array_equal(shown.numpy(), np.asarray(picture(0, 40, 44)))


@pytest.mark.parametrize(("split", "purpose"), [("train", "train on"), ("val", "validate on"), ("predict", "enlarge")])
def test_a_folder_that_is_not_given_is_named(split: str, purpose: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no images to {purpose}: set {split} to their folder"):
        getattr(Folder(), f"{split}_dataloader")()


def test_an_empty_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no image below this folder"):
        Folder(predict=str(tmp_path)).predict_dataloader()
