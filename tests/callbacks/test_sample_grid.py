from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.sample_grid import FOOTER, GAP, HEADER, MARGIN, SampleGrid, centre, column, draw, psnr_line
from datamodules.batch import Batch, to_pixels
from lightning_modules.metrics.scorer import Scorer, classic
from tests.callbacks.small import SCALE, SIZE, SmallData, SmallResolver, batch_of, trainer_of


def tile_at(picture: Image.Image, row: int, place: int, side: int = SIZE) -> np.ndarray:
    left, top = MARGIN + place * (side + GAP), HEADER + row * (side + GAP)
    return np.asarray(picture)[top : top + side, left : left + side]


def test_tiles_are_the_images_as_8_bit_pixels() -> None:
    batch = batch_of("a", "b")
    outputs = {"sr": batch["hr"] / 2, "panels": {"mask": (batch["hr"][:, :1] > 0).float()}}
    tiles = column(outputs, batch, 1, SIZE, "bicubic")
    assert list(tiles) == ["lr", "bicubic", "sr", "hr", "mask"]
    expected = ((batch["hr"][1] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(tiles["hr"], expected)
    np.testing.assert_array_equal(tiles["lr"][::SCALE, ::SCALE], tiles["lr"][1::SCALE, 1::SCALE])
    np.testing.assert_array_equal(tiles["mask"], np.where(batch["hr"][1, 0, ..., None] > 0, 255, 0).repeat(3, axis=-1))


def test_large_images_are_shown_as_their_centre_at_full_resolution() -> None:
    image = torch.arange(8 * 9).reshape(1, 8, 9)
    assert torch.equal(centre(image, 4), image[:, 2:6, 2:6])
    assert torch.equal(centre(image, 10), image)


def test_the_same_images_are_drawn_at_every_validation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = trainer_of(tmp_path, SampleGrid(images=3), max_epochs=2)
    trainer.fit(SmallResolver(), SmallData())
    first, second = (Image.open(tmp_path / f"samples/step-00000{step}.png") for step in (4, 8))
    for place, key in enumerate(("val/00", "val/01", "val/02")):
        hr = ((batch_of(key)["hr"][0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(tile_at(first, 3, place), hr)
        np.testing.assert_array_equal(tile_at(second, 3, place), hr)
    assert (tile_at(first, 2, 0) != tile_at(second, 2, 0)).any()  # the model has learnt in between


def test_the_step_and_the_psnr_stand_in_the_picture(tmp_path: Path) -> None:
    batch = batch_of("a")
    line = psnr_line(batch["up"], batch, 0, "bicubic")
    expected = Scorer(classic()).measure(
        {"": (to_pixels(batch["up"], ["a"]).double()) / 255},
        hr=to_pixels(batch["hr"], ["a"]).double() / 255,
        lr=(batch["lr"].double() + 1) / 2,
        keys=["a"],
        border=SCALE,
    )
    assert line == "{0:.2f} dB\nbicubic {0:.2f}".format(expected[0].scores["psnr_y"])
    assert psnr_line(batch["up"], Batch(lr=batch["lr"], up=batch["up"], key=["a"]), 0, "bicubic") == ""

    tiles = {"a": column({"sr": batch["up"]}, batch, 0, SIZE, "bicubic")}
    plain, labelled = draw(tiles), draw(tiles, {"a": line}, "step 3")
    assert labelled.height == plain.height + FOOTER
    assert len(np.unique(np.asarray(labelled)[plain.height :])) > 1  # something is written below
    assert (np.asarray(labelled)[:HEADER, :MARGIN] != np.asarray(plain)[:HEADER, :MARGIN]).any()


def test_chosen_images_come_in_the_order_they_were_named(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, SampleGrid(keys=["val/04", "val/01"]))
    trainer.validate(SmallResolver(), SmallData(), verbose=False)
    picture = Image.open(tmp_path / "samples/step-000000.png")
    for place, key in enumerate(("val/04", "val/01")):
        hr = ((batch_of(key)["hr"][0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(tile_at(picture, 3, place), hr)


def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, SampleGrid(keys=["val/04", "div2k/0801"]))
    with pytest.raises(ValueError, match="div2k/0801: to be shown"):
        trainer.validate(SmallResolver(), SmallData(), verbose=False)


def test_images_of_different_sizes_share_a_grid_and_every_row_and_column_is_labelled() -> None:
    sizes = {"a": (20, 32), "b": (32, 24)}
    columns = {
        key: column({"sr": batch["up"]}, batch, 0, SIZE, "bicubic")
        for key, batch in ((key, batch_of(key, height=h, width=w)) for key, (h, w) in sizes.items())
    }
    picture = draw(columns)
    assert picture.size == (MARGIN + 2 * (SIZE + GAP), HEADER + 4 * (SIZE + GAP))
    np.testing.assert_array_equal(tile_at(picture, 2, 1)[:32, :24], columns["b"]["sr"])
    drawn = np.asarray(picture)
    for row in range(4):
        top = HEADER + row * (SIZE + GAP)
        assert len(np.unique(drawn[top : top + SIZE, :MARGIN])) > 1
    for place in range(2):
        left = MARGIN + place * (SIZE + GAP)
        assert len(np.unique(drawn[:HEADER, left : left + SIZE])) > 1
