import numpy as np
import torch
from skimage.color import rgb2ycbcr
from skimage.data import astronaut

from lightning_modules.metrics.pixels import crop_border, luma


def test_luma_is_that_of_scikit_image() -> None:
    pixels = astronaut()[:64, :96] / 255
    y = luma(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    np.testing.assert_allclose(255 * y[0, 0].numpy(), rgb2ycbcr(pixels)[..., 0], atol=1e-10)


def test_a_border_is_cut_from_each_side_and_none_is_none() -> None:
    image = torch.arange(30).reshape(1, 1, 5, 6)
    assert crop_border(image, 2).flatten().tolist() == [14, 15]
    assert torch.equal(crop_border(image, 0), image)
