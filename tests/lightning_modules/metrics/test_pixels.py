import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.data import astronaut

from lightning_modules.metrics.pixels import crop_border, luma, to_uint8


def test_luma_is_that_of_scikit_image() -> None:
    pixels = astronaut()[:64, :96] / 255
    y = luma(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    np.testing.assert_allclose(255 * y[0, 0].numpy(), rgb2ycbcr(pixels)[..., 0], atol=1e-10)


def test_every_level_survives_the_way_to_the_network_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(levels.float() / 255 * 2 - 1, ["levels"]), levels)


def test_pixels_are_rounded_and_clamped() -> None:
    image = torch.tensor([-3.0, 10.4, 10.6, 300.0]).reshape(1, 1, 2, 2) / 127.5 - 1
    assert to_uint8(image, ["a"]).flatten().tolist() == [0, 10, 11, 255]


def test_an_image_that_is_not_finite_is_named() -> None:
    images = torch.zeros(3, 3, 4, 4)
    images[1, 0, 2, 2] = torch.nan
    with pytest.raises(ValueError, match=r"^second: the image holds NaN"):
        to_uint8(images, ["first", "second", "third"])


def test_a_border_is_cut_from_each_side_and_none_is_none() -> None:
    image = torch.arange(30).reshape(1, 1, 5, 6)
    assert crop_border(image, 2).flatten().tolist() == [14, 15]
    assert torch.equal(crop_border(image, 0), image)
