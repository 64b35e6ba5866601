"""Convolution through spectra against the sum over taps."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from datamodules.degradations.blur import blur, convolve, fast_length, unsharp_kernel, unsharp_mask
from datamodules.degradations.image_batch import ImageBatch


def summed(image: Tensor, weights: Tensor) -> Tensor:
    """`[1,3,H,W]` with one kernel `[K,K]`, term by term."""
    reach = weights.shape[-1] // 2
    around = functional.pad(image, (reach,) * 4, mode="reflect")
    return functional.conv2d(around, weights.expand(3, 1, -1, -1), groups=3)


def symmetric_weights(count: int, size: int) -> Tensor:
    weights = torch.rand(count, size, size, generator=torch.Generator().manual_seed(1))
    weights = weights + weights.flip(1, 2)
    return weights / weights.sum((1, 2), keepdim=True)


@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 21), (37, 90, 7), (12, 11, 21)])
def test_equals_the_sum_over_taps(height: int, width: int, size: int) -> None:
    images = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    weights = symmetric_weights(3, size)
    made = convolve(ImageBatch.from_tensor(images), weights).pixels
    for i in range(3):
        torch.testing.assert_close(made[i : i + 1], summed(images[i : i + 1], weights[i]), rtol=0, atol=2e-6)


def test_images_of_different_sizes_in_one_batch() -> None:
    sizes = [(40, 64), (64, 33), (21, 21)]
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    weights = symmetric_weights(3, 15)
    made = convolve(ImageBatch(pixels, [h for h, _ in sizes], [w for _, w in sizes]), weights).pixels
    for i, (h, w) in enumerate(sizes):
        expected = summed(pixels[i : i + 1, :, :h, :w], weights[i])[0]
        torch.testing.assert_close(made[i, :, :h, :w], expected, rtol=0, atol=2e-6)


def test_kernels_of_different_sides_in_one_batch() -> None:
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    operations = [{"kernel": "iso", "size": 7, "sigma_x": 1.1}, {"kernel": "sinc", "size": 21, "cutoff": 2.0}]
    made = blur(ImageBatch.from_tensor(images), operations).pixels
    for i in range(2):
        alone = blur(ImageBatch.from_tensor(images[i : i + 1]), operations[i : i + 1]).pixels
        torch.testing.assert_close(made[i : i + 1], alone, rtol=0, atol=2e-6)


def test_images_smaller_than_half_the_kernel_are_refused() -> None:
    images = ImageBatch(torch.rand(2, 3, 40, 40), [40, 10], [40, 30])
    with pytest.raises(ValueError, match="10x30 cannot be blurred by 21 taps"):
        convolve(images, symmetric_weights(2, 21))


def test_fast_lengths() -> None:
    assert [fast_length(length) for length in (1, 64, 276, 277, 307)] == [2, 64, 280, 280, 320]


def test_unsharp_mask() -> None:
    flat = torch.full((1, 3, 64, 64), 0.5)
    torch.testing.assert_close(unsharp_mask(flat), flat)
    edge = flat.clone()
    edge[..., 32:] = 0.8
    weak = flat.clone()
    weak[..., 32:] = 0.5 + 8 / 255  # no pixel is 10 levels from its blur
    sharp = unsharp_mask(edge)
    assert sharp[..., 31].max() < 0.5 - 0.02
    assert sharp[..., 32].min() > 0.8 + 0.02
    torch.testing.assert_close(unsharp_mask(weak), weak, rtol=0, atol=1e-6)


def test_unsharp_masking_blurs_with_a_deviation_of_eight_pixels() -> None:
    kernel = unsharp_kernel()[0]  # OpenCV: 0.3 ((51 - 1) / 2 - 1) + 0.8
    assert float(kernel[25, 33] / kernel[25, 25]) == pytest.approx(math.exp(-0.5), rel=1e-4)
    assert float(kernel[17, 25] / kernel[25, 25]) == pytest.approx(math.exp(-0.5), rel=1e-4)


def test_sharpened_edges_stay_between_black_and_white() -> None:
    edge = torch.zeros(1, 3, 64, 64)
    edge[..., 32:] = 1
    sharp = unsharp_mask(edge)
    assert sharp.min() >= 0 and sharp.max() <= 1 + 1e-6
