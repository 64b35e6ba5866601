"""Images of a batch as 8-bit pixels."""

import pytest
import torch

from datamodules.batch import to_pixels


def test_every_level_survives_the_way_to_the_network_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_pixels(levels.float() / 255 * 2 - 1, ["levels"]), levels)


def test_pixels_are_rounded_and_clamped() -> None:
    image = torch.tensor([-3.0, 10.4, 10.6, 300.0]).reshape(1, 1, 2, 2) / 127.5 - 1
    assert to_pixels(image, ["a"]).flatten().tolist() == [0, 10, 11, 255]


def test_an_image_that_is_not_finite_is_named() -> None:
    images = torch.zeros(3, 3, 4, 4)
    images[1, 0, 2, 2] = torch.nan
    with pytest.raises(ValueError, match=r"^second: the image holds NaN"):
        to_pixels(images, ["first", "second", "third"])
