"""The user's own images: training from plain folders, and enlarging whatever lies in one."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.folder import Folder
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
    assert data.failures == []


def test_a_single_file(tmp_path: Path) -> None:
    assert enlarged(Folder(predict=str(awkward(tmp_path) / "odd.png"))) == {"odd": (7, 13)}


def test_unreadable_images_are_named_and_the_rest_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    awkward(tmp_path)
    (tmp_path / "broken.png").write_bytes((tmp_path / "grey.png").read_bytes()[:80])
    (tmp_path / "empty.jpg").write_bytes(b"")
    data = Folder(predict=str(tmp_path))
    with caplog.at_level(logging.ERROR):
        assert enlarged(data) == SIZES
    assert [path.name for path, _ in data.failures] == ["broken.png", "empty.jpg"]
    assert "broken.png: " in caplog.text and "empty.jpg: zero bytes; left out" in caplog.text


def test_images_of_one_name_keep_their_suffix(tmp_path: Path) -> None:
    for name in ("cat.png", "cat.jpg", "dog.png"):
        save(tmp_path / name, 0)
    assert list(enlarged(Folder(predict=str(tmp_path)))) == ["cat.jpg", "cat.png", "dog"]


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
