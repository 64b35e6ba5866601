"""Noise that is a function of seed and place."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from datamodules.degradations.image_batch import ImageBatch
from datamodules.degradations.noise import (
    NoiseDistribution,
    add_gaussian_noise,
    add_poisson_noise,
    grey_levels,
    hashed_normal,
    poisson_from_normal,
)

LAW = NoiseDistribution(
    gaussian_noise_prob=0.5, noise_range=(1, 30), poisson_scale_range=(0.05, 3), gray_noise_prob=0.4
)


def channels(count: int) -> Tensor:
    return torch.arange(3).expand(count, -1)


def ramp(count: int = 1) -> Tensor:
    """Images that use all grey levels."""
    return torch.linspace(0.2, 0.8, 256 * 256).view(1, 1, 256, 256).expand(count, 3, -1, -1).contiguous()


def test_normal_numbers_are_normal_and_independent() -> None:
    drawn = hashed_normal(torch.tensor([1, 2]), channels(2), 301, 257)
    for one in drawn.flatten(0, 1):
        assert stats.kstest(one.flatten().numpy(), "norm").pvalue > 1e-3
    rows = drawn.flatten(2).flatten(0, 1).double()
    neighbours = torch.stack([rows[:, 1:].flatten(), rows[:, :-1].flatten(), rows[:, 1:].abs().flatten()])
    for table in (rows, neighbours):
        off_diagonal = torch.corrcoef(table) - torch.eye(len(table))
        assert off_diagonal.abs().max() < 5 / table.shape[1] ** 0.5
    below = rows.view(6, 301, 257)
    assert torch.corrcoef(torch.stack([below[:, 1:].flatten(), below[:, :-1].flatten()]))[0, 1].abs() < 0.01


def test_normal_numbers_depend_on_seed_channel_and_place_only() -> None:
    seeds = torch.tensor([7, -(2**62), 7])
    large, small = hashed_normal(seeds, channels(3), 40, 51), hashed_normal(seeds[1:2], channels(1), 17, 20)
    assert torch.equal(large[1, :, :17, :20], small[0])
    assert torch.equal(large[0], large[2])
    assert not torch.equal(large[0], large[1])


@pytest.mark.parametrize("rate", [0.1, 1.7, 5.9, 6.1, 20.0, 130.0, 255.0])
def test_poisson_counts(rate: float) -> None:
    counts = poisson_from_normal(
        torch.full((300_000,), rate), hashed_normal(torch.tensor([3]), torch.tensor([[0]]), 500, 600).flatten()
    )
    largest = int(counts.max())
    seen = np.bincount(counts.long().numpy())
    expected = stats.poisson.pmf(np.arange(largest + 1), rate) * len(counts)
    common = expected > 20
    statistic = ((seen - expected) ** 2 / expected)[common].sum()
    assert stats.chi2.sf(statistic, common.sum() - 1) > 1e-3
    assert counts.min() >= 0


def test_zero_rate_gives_no_photons() -> None:
    assert poisson_from_normal(torch.zeros(4), torch.tensor([-3.0, 0.0, 3.0, 6.0])).eq(0).all()


@pytest.mark.parametrize("gray", [True, False])
def test_gaussian_noise_has_its_sigma(gray: bool) -> None:
    images = ImageBatch.from_tensor(torch.full((1, 3, 200, 200), 0.5))
    noise = add_gaussian_noise(images, [{"sigma": 20.0, "gray": gray, "seed": 5}]).pixels - 0.5
    assert noise.std() * 255 == pytest.approx(20, rel=0.02)
    assert torch.equal(noise[:, 0], noise[:, 1]) == gray


@pytest.mark.parametrize("gray", [True, False])
def test_poisson_noise_has_the_variance_of_photons(gray: bool) -> None:
    images = ImageBatch.from_tensor(ramp())
    assert grey_levels(ImageBatch.from_tensor((ramp() * 255).round())) == 256
    noise = add_poisson_noise(images, [{"factor": 0.5, "gray": gray, "seed": 5}]).pixels - ramp()
    for index, part in enumerate(noise.chunk(4, dim=2)):  # from dark to bright
        brightness = 0.2 + 0.6 * (index + 0.5) / 4
        assert part.var() == pytest.approx(0.25 * brightness / 256, rel=0.05)
    assert torch.equal(noise[:, 0], noise[:, 1]) == gray


def test_few_grey_levels_mean_few_photons() -> None:
    two = torch.zeros(1, 3, 8, 8)
    two[..., ::2] = 1
    assert grey_levels(ImageBatch.from_tensor(two * 255)) == 2
    three = two.clone()
    three[..., 0, 0] = 0.5
    assert grey_levels(ImageBatch.from_tensor((three * 255).round())) == 4


def test_a_batch_of_mixed_noises_and_sizes_equals_its_members() -> None:
    pixels, sizes = ramp(4) ** 1.5, [(64, 50), (256, 256), (31, 200), (64, 50)]
    images = ImageBatch(pixels, [h for h, _ in sizes], [w for _, w in sizes])
    operations = [{"sigma": 9.0, "factor": 1.5, "gray": bool(i % 2), "seed": i * 2**61} for i in range(4)]
    for add in (add_gaussian_noise, add_poisson_noise):
        together = add(images, operations)
        for i, (h, w) in enumerate(sizes):
            alone = add(ImageBatch.from_tensor(pixels[i : i + 1, :, :h, :w]), operations[i : i + 1])
            torch.testing.assert_close(together.pixels[i, :, :h, :w], alone.pixels[0], rtol=0, atol=1e-6)


def test_drawn_parameters_follow_their_laws() -> None:
    rng = np.random.default_rng(2)
    drawn = [LAW.draw(rng) for _ in range(6000)]
    gaussian = [one for one in drawn if one["name"] == "gaussian_noise"]
    poisson_ = [one for one in drawn if one["name"] == "poisson_noise"]
    assert len(gaussian) + len(poisson_) == len(drawn)
    assert stats.binomtest(len(gaussian), len(drawn), 0.5).pvalue > 1e-3
    assert stats.binomtest(sum(one["gray"] for one in drawn), len(drawn), 0.4).pvalue > 1e-3
    assert stats.kstest([one["sigma"] for one in gaussian], stats.uniform(1, 29).cdf).pvalue > 1e-3
    assert stats.kstest([one["factor"] for one in poisson_], stats.uniform(0.05, 2.95).cdf).pvalue > 1e-3
    assert stats.kstest([one["seed"] / 2**63 for one in drawn], "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("key", "value"),
    [("gaussian_noise_prob", -0.1), ("gray_noise_prob", 2), ("noise_range", (5, 1)), ("poisson_scale_range", (-1, 1))],
)
def test_impossible_laws_name_their_key(key: str, value: object) -> None:
    law: dict[str, Any] = {**vars(LAW), key: value, "suffix": "2"}
    with pytest.raises(ValueError, match=f"{key}2"):
        NoiseDistribution(**law)


def test_noise_stays_between_black_and_white() -> None:
    for level in (0.0, 1.0):
        images = ImageBatch.from_tensor(torch.full((1, 3, 32, 32), level))
        for add in (add_gaussian_noise, add_poisson_noise):
            noisy = add(images, [{"sigma": 50.0, "factor": 3.0, "gray": False, "seed": 5}]).pixels
            assert noisy.min() >= 0 and noisy.max() <= 1


def test_photons_are_counted_in_the_levels_that_an_image_uses() -> None:
    """15 levels count as 16: level 120 receives 120 * 16 / 255 photons, and a photon more is a 16th more of white."""
    levels = torch.tensor([100.0 + 2 * i for i in range(15)] + [120.0] * 85)
    images = ImageBatch.from_tensor((levels / 255).repeat(300).view(1, 1, 300, 100).expand(1, 3, -1, -1).contiguous())
    noise = add_poisson_noise(images, [{"factor": 0.5, "gray": False, "seed": 5}]).pixels - images.pixels
    assert noise[..., 15:].var() == pytest.approx(0.25 * (120 * 16 / 255) / 16**2, rel=0.03)


@pytest.mark.parametrize(("channel", "luma"), [(0, 0.2989), (1, 0.587), (2, 0.114)])
def test_gray_photons_are_those_of_the_luma(channel: int, luma: float) -> None:
    pixels = torch.zeros(1, 3, 200, 200)
    pixels[:, channel] = 0.6
    operation = {"factor": 0.05, "gray": True, "seed": 5}
    noise = add_poisson_noise(ImageBatch.from_tensor(pixels), [operation]).pixels - pixels
    rate = round(0.6 * 255 * luma) / 255  # one level is used
    assert noise[:, channel].var() == pytest.approx(0.05**2 * rate, rel=0.05)
