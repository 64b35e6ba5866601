"""Blur kernels: sums, moments, frequency responses, and the law they are drawn by."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from datamodules.degradations.kernels import FAMILIES, KernelDistribution, blur_kernels, sinc_operation

LAW: dict[str, Any] = {
    "blur_kernel_size": 21,
    "blur_kernel_size_min": 7,
    "kernel_list": FAMILIES,
    "kernel_prob": (0.45, 0.25, 0.12, 0.03, 0.12, 0.03),
    "sinc_prob": 0.1,
    "blur_sigma": (0.2, 3.0),
    "betag_range": (0.5, 4.0),
    "betap_range": (1.0, 2.0),
}


def bell(kernel: str, **parameters: float) -> Tensor:
    return blur_kernels([{"kernel": kernel, "size": 21, **parameters}])[0].double()


def covariance(weights: Tensor) -> Tensor:
    axis = torch.arange(weights.shape[-1], dtype=torch.float64) - weights.shape[-1] // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([(weights * a * b).sum() for a, b in ((x, x), (x, y), (y, x), (y, y))]).view(2, 2)


def test_drawn_kernels_sum_to_one_and_are_centred() -> None:
    rng = np.random.default_rng(0)
    drawn = blur_kernels([KernelDistribution(**LAW).draw(rng) for _ in range(300)])
    torch.testing.assert_close(drawn.sum((1, 2)), torch.ones(300))
    torch.testing.assert_close(drawn, drawn.flip(1, 2), rtol=0, atol=1e-6)  # so their mean is the centre


@pytest.mark.parametrize("angle", [0.0, 0.5, -2.0])
def test_gaussian_covariance(angle: float) -> None:
    weights = bell("aniso", sigma_x=2.0, sigma_y=1.0, angle=angle)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    expected = turn @ torch.diag(torch.tensor([4.0, 1.0]).double()) @ turn.T
    torch.testing.assert_close(covariance(weights), expected, rtol=0, atol=2e-3)


def test_families_agree_where_they_should() -> None:
    iso = bell("iso", sigma_x=1.5)
    torch.testing.assert_close(covariance(iso), 2.25 * torch.eye(2).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(bell("aniso", sigma_x=1.5, sigma_y=1.5, angle=1.0), iso)
    torch.testing.assert_close(bell("generalized_iso", sigma_x=1.5, beta=1.0), iso)


@pytest.mark.parametrize("beta", [0.6, 1.0, 3.0])
def test_shapes_are_those_of_the_paper(beta: float) -> None:
    distance = (4 / 1.5) ** 2  # of a pixel four to the right
    general, plateau = bell("generalized_iso", sigma_x=1.5, beta=beta), bell("plateau_iso", sigma_x=1.5, beta=beta)
    assert general[10, 14] / general[10, 10] == pytest.approx(math.exp(-0.5 * distance**beta), rel=1e-4)
    assert plateau[10, 14] / plateau[10, 10] == pytest.approx(1 / (1 + distance**beta), rel=1e-4)


def test_sinc_passes_low_and_stops_high_frequencies() -> None:
    weights = blur_kernels([sinc_operation(21, 1.5)])[0].double()
    response = torch.fft.fft2(weights, s=(64, 64)).abs()[0]  # along x, 64 steps for a whole turn
    frequency = torch.arange(64) * 2 * math.pi / 64
    assert (response[frequency < 0.75] - 1).abs().max() < 0.15
    assert response[(frequency > 2.0) & (frequency < math.pi)].max() < 0.1


def test_smaller_kernels_are_framed_by_zeros() -> None:
    alone = blur_kernels([{"kernel": "iso", "size": 7, "sigma_x": 2.0}])[0]
    framed = blur_kernels([{"kernel": "iso", "size": 7, "sigma_x": 2.0}, sinc_operation(11, 1.0)])[0]
    torch.testing.assert_close(framed[2:-2, 2:-2], alone)
    assert framed.sum() == pytest.approx(1.0)


def test_drawn_parameters_follow_their_laws() -> None:
    rng = np.random.default_rng(1)
    drawn = [KernelDistribution(**LAW).draw(rng) for _ in range(6000)]
    gaussians_and_plateaus = [blur for blur in drawn if blur["kernel"] != "sinc"]
    families = [sum(blur["kernel"] == family for blur in gaussians_and_plateaus) for family in FAMILIES]
    assert stats.binomtest(len(drawn) - len(gaussians_and_plateaus), len(drawn), 0.1).pvalue > 1e-3
    assert stats.chisquare(families, np.array(LAW["kernel_prob"]) * len(gaussians_and_plateaus)).pvalue > 1e-3
    assert stats.chisquare([sum(blur["size"] == size for blur in drawn) for size in range(7, 22, 2)]).pvalue > 1e-3
    follows_uniform([blur["sigma_x"] for blur in gaussians_and_plateaus], 0.2, 3.0)
    turned = [blur for blur in gaussians_and_plateaus if "aniso" in blur["kernel"]]
    follows_uniform([blur["sigma_y"] for blur in turned], 0.2, 3.0)
    follows_uniform([blur["angle"] for blur in turned], -math.pi, math.pi)
    for prefix, low, high in (("generalized", 0.5, 4.0), ("plateau", 1.0, 2.0)):
        betas = [blur["beta"] for blur in gaussians_and_plateaus if blur["kernel"].startswith(prefix)]
        below = [beta for beta in betas if beta < 1 or (low == 1 and beta == 1)]
        assert stats.binomtest(len(below), len(betas), 0.5).pvalue > 1e-3
        follows_uniform([beta for beta in betas if beta > 1], 1.0, high)
        if low < 1:
            follows_uniform(below, low, 1.0)
    for small, low in ((True, math.pi / 3), (False, math.pi / 5)):
        cutoffs = [blur["cutoff"] for blur in drawn if blur["kernel"] == "sinc" and (blur["size"] < 13) == small]
        follows_uniform(cutoffs, low, math.pi)


def follows_uniform(values: list[float], low: float, high: float) -> None:
    assert len(values) > 100
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("blur_kernel_size", 20, "blur_kernel_size_min2, blur_kernel_size2"),
        ("blur_kernel_size_min", 23, "blur_kernel_size_min2, blur_kernel_size2"),
        ("kernel_list", ("iso", "round"), "kernel_list2: .* got round"),
        ("kernel_prob", (0.5, 0.5), "kernel_prob2: expected 6"),
        ("kernel_prob", (0.5, 0.5, 0.5, 0, 0, 0), "kernel_prob2: expected 6"),
        ("sinc_prob", 1.5, "sinc_prob2"),
        ("blur_sigma", (0.0, 1.0), "blur_sigma2"),
        ("betag_range", (1.5, 4.0), "betag_range2"),
        ("betap_range", (0.5, 0.8), "betap_range2"),
    ],
)
def test_impossible_laws_name_their_key(key: str, value: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        KernelDistribution(**{**LAW, key: value}, suffix="2")
