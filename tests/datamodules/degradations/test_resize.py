"""Resizing to a size per image against torch's own, one image at a time."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from datamodules.degradations.image_batch import ImageBatch
from datamodules.degradations.resize import MODES, ResizeDistribution, rescale, resize

SIZES = [(90, 64), (33, 71), (20, 20), (57, 90), (90, 90), (41, 26)]
FACTORS = [0.31, 1.37, 1.0, 0.777, 0.5, 1.2]


def batch() -> ImageBatch:
    pixels = torch.rand(6, 3, 90, 90, generator=torch.Generator().manual_seed(0))
    return ImageBatch(pixels, [h for h, _ in SIZES], [w for _, w in SIZES])


@pytest.mark.parametrize("shift", range(3))
def test_rescale_equals_interpolate_by_a_factor(shift: int) -> None:
    modes = [MODES[(i + shift) % 3] for i in range(6)]
    made = rescale(batch(), [{"factor": f, "mode": m} for f, m in zip(FACTORS, modes, strict=True)])
    for i, (height, width) in enumerate(SIZES):
        image = batch().pixels[i : i + 1, :, :height, :width]
        expected = functional.interpolate(image, scale_factor=FACTORS[i], mode=modes[i])[0]
        assert (made.heights[i], made.widths[i]) == expected.shape[-2:]
        actual = made.pixels[i, :, : made.heights[i], : made.widths[i]]
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shift", range(3))
def test_resize_equals_interpolate_to_a_size(shift: int) -> None:
    modes = [MODES[(i + shift) % 3] for i in range(6)]
    made = resize(batch(), [{"factor": f, "mode": m} for f, m in zip(FACTORS, modes, strict=True)], low=(50, 37))
    for i, (height, width) in enumerate(SIZES):
        size = int(50 * FACTORS[i]), int(37 * FACTORS[i])
        image = batch().pixels[i : i + 1, :, :height, :width]
        expected = functional.interpolate(image, size=size, mode=modes[i])[0]
        assert (made.heights[i], made.widths[i]) == size
        torch.testing.assert_close(made.pixels[i, :, : size[0], : size[1]], expected, rtol=0, atol=2e-5)


def test_one_image_goes_through_torch_itself() -> None:
    images = batch().select([3])
    for mode in MODES:
        expected = functional.interpolate(images.pixels, scale_factor=0.6, mode=mode)
        assert torch.equal(rescale(images, [{"factor": 0.6, "mode": mode}]).pixels, expected)


def test_drawn_parameters_follow_their_laws() -> None:
    rng = np.random.default_rng(3)
    law = ResizeDistribution(resize_prob=(0.2, 0.7, 0.1), resize_range=(0.15, 1.5))
    drawn = [law.draw(rng, "rescale") for _ in range(6000)]
    up = [one["factor"] for one in drawn if one["factor"] > 1]
    down = [one["factor"] for one in drawn if one["factor"] < 1]
    counts = [len(up), len(down), len(drawn) - len(up) - len(down)]
    assert stats.chisquare(counts, [1200, 4200, 600]).pvalue > 1e-3
    assert stats.kstest(up, stats.uniform(1, 0.5).cdf).pvalue > 1e-3
    assert stats.kstest(down, stats.uniform(0.15, 0.85).cdf).pvalue > 1e-3
    assert stats.chisquare([sum(one["mode"] == mode for one in drawn) for mode in MODES]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("key", "value"), [("resize_prob", (0.5, 0.5)), ("resize_range", (1.2, 1.5)), ("resize_range", (0.5, 0.9))]
)
def test_impossible_laws_name_their_key(key: str, value: tuple[float, ...]) -> None:
    law = {"resize_prob": (0.2, 0.7, 0.1), "resize_range": (0.15, 1.5), key: value}
    with pytest.raises(ValueError, match=f"{key}2"):
        ResizeDistribution(**law, suffix="2")
