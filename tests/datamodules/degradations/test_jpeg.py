"""JPEG against Pillow's libjpeg, on photographs inside scikit-image."""

import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from datamodules.degradations.image_batch import ImageBatch
from datamodules.degradations.jpeg import (
    JPEGDistribution,
    compress,
    downsample_chroma,
    quantisation_tables,
    upsample_chroma,
)


def photograph(height: int, width: int) -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[40 : 40 + height, 120 : 120 + width])


def libjpeg(image: np.ndarray, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return Image.open(buffer)


def tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("quality", [1, 5, 20, 30, 49, 50, 65, 80, 90, 95, 100])
@pytest.mark.parametrize("size", [(256, 256), (131, 94), (45, 200)])
def test_pixels_are_within_one_level_of_libjpeg_on_average(quality: int, size: tuple[int, int]) -> None:
    image = photograph(*size)
    made = compress(ImageBatch.from_tensor(tensor(image)), [{"quality": quality}]).pixels[0].permute(1, 2, 0) * 255
    difference = np.abs(made.numpy() - np.asarray(libjpeg(image, quality), dtype=np.float32))
    assert difference.mean() < 0.5
    assert (difference > 2).mean() < 0.05


def test_tables_equal_libjpeg() -> None:
    image = photograph(16, 16)
    luma, chroma = quantisation_tables(range(1, 101), torch.device("cpu"))
    for quality in range(1, 101):
        tables = libjpeg(image, quality).quantization
        assert sorted(luma[quality - 1].flatten().tolist()) == sorted(tables[0])
        assert sorted(chroma[quality - 1].flatten().tolist()) == sorted(tables[1])


def test_lower_quality_is_worse() -> None:
    image = tensor(photograph(128, 128))
    errors = [
        (compress(ImageBatch.from_tensor(image), [{"quality": q}]).pixels - image).abs().mean()
        for q in (95, 70.5, 70, 30, 5)
    ]
    assert errors == sorted(errors)


def test_images_of_different_sizes_and_qualities_in_one_batch() -> None:
    sizes, qualities = [(96, 80), (33, 47), (80, 96), (17, 96)], [30.0, 95.0, 61.7, 44.0]
    pixels = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    images = ImageBatch(pixels, [h for h, _ in sizes], [w for _, w in sizes])
    together = compress(images, [{"quality": quality} for quality in qualities]).pixels
    for i, (h, w) in enumerate(sizes):
        alone = compress(ImageBatch.from_tensor(pixels[i : i + 1, :, :h, :w]), [{"quality": qualities[i]}]).pixels[0]
        difference = (together[i, :, :h, :w] - alone).abs()
        assert (difference > 1e-6).float().mean() < 0.01  # a rounding may fall otherwise, now and then


def test_quality_follows_its_law() -> None:
    rng = np.random.default_rng(0)
    drawn = [JPEGDistribution(jpeg_range=(30, 95)).draw(rng)["quality"] for _ in range(2000)]
    assert stats.kstest(drawn, stats.uniform(30, 65).cdf).pvalue > 1e-3


def test_impossible_qualities_are_named() -> None:
    with pytest.raises(ValueError, match="jpeg_range2"):
        JPEGDistribution(jpeg_range=(30, 101), suffix="2")
    with pytest.raises(ValueError, match="quality"):
        compress(ImageBatch.from_tensor(torch.rand(1, 3, 16, 16)), [{"quality": 0}])


def test_chroma_is_halved_and_enlarged_as_libjpeg_rounds() -> None:
    totals = torch.tensor([[1.0, 1, 2, 2, 3, 3, 6, 6], [2, 2, 1, 1, 2, 2, 6, 6]])  # row by row of 2x2 cells
    cells = torch.zeros(1, 1, 4, 8)
    cells[..., ::2, :] = totals
    images = ImageBatch.from_tensor(torch.zeros(1, 3, 4, 8))
    # A cell of which the sum is n: (n + 1) // 4 in even columns, (n + 2) // 4 in odd ones.
    halved = downsample_chroma(cells, images)
    assert halved.pixels[0, 0].tolist() == [[0, 1, 1, 3], [1, 1, 1, 3]]
    assert (halved.heights, halved.widths) == ([2], [4])

    # Nearer neighbours count three times: rows 10 10 30 30 become sums of 4, and so do columns; + 8 or + 7, over 16.
    chroma = ImageBatch.from_tensor(torch.tensor([[[[10.0, 20.0], [30.0, 50.0]]]]))
    wanted = []
    for near, far in (((10, 20), (10, 20)), ((10, 20), (30, 50)), ((30, 50), (10, 20)), ((30, 50), (30, 50))):
        left, right = (3 * n + f for n, f in zip(near, far, strict=True))
        row = [4 * left + 8, 3 * left + right + 7, 3 * right + left + 8, 4 * right + 7]
        wanted.append([total // 16 for total in row])
    assert upsample_chroma(chroma)[0, 0].tolist() == wanted


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_black_and_white_stay_what_they_are(level: float) -> None:
    images = ImageBatch.from_tensor(torch.full((1, 3, 24, 24), level))
    assert torch.equal(compress(images, [{"quality": 90.0}]).pixels, images.pixels)
