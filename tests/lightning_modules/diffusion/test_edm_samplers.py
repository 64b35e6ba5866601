"""Heun's sampler for EDM and Relay Diffusion, against formulas, exact solutions and refusals."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_modules.diffusion.edm_samplers import EDMHeun, RelayHeun
from lightning_modules.diffusion.relay import EDM, Relay, dct_basis, levels, patch_product
from lightning_modules.diffusion.samplers import DDIM, Ancestral, Heun
from lightning_modules.diffusion.schedules import Cosine
from lightning_modules.diffusion.vp import VP


class Recorder:
    """A denoiser that always answers `x0`, and remembers what it was asked."""

    def __init__(self, x0: Tensor) -> None:
        self.x0, self.calls = x0, list[tuple[Tensor, Tensor]]()

    def __call__(self, x_t: Tensor, t: Tensor, rows: Tensor | None = None, /) -> Tensor:
        self.calls.append((x_t, t))
        return self.x0


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gaussian_denoiser(process: EDM | Relay, variance: float) -> Any:
    """The exact denoiser of white Gaussian images: the mean of x0 given x_t where the mean of x_t is x0."""

    def denoise(x_t: Tensor, t: Tensor, rows: Tensor | None = None, /) -> Tensor:
        sigma = process.std(t).view(-1, 1, 1, 1)
        return variance / (variance + sigma**2) * x_t

    return denoise


@pytest.mark.parametrize(
    ("sampler", "process", "evaluations"),
    [
        (RelayHeun(), Relay(), 13),
        (RelayHeun(40, sigma_start=0.3), Relay(), 19),
        (RelayHeun(1, sigma_max=0.5), Relay(), 1),
        (RelayHeun(sigma_start=1.2, blur_prob_length=1.05), Relay(prob_length=0.89, blur_sigma_max=2.0), 13),
        (EDMHeun(1), EDM(), 1),
        (EDMHeun(5), EDM(), 9),
        (EDMHeun(5, eta=0.05), EDM(), 9),
        (EDMHeun(5, churn=40, churn_range=(0.05, 50.0), churn_noise=1.003), EDM(), 9),
        (EDMHeun(6), Relay(), 11),
        (Ancestral(6, eta=0.2), Relay(), 6),
        (DDIM(6), Relay(), 6),
    ],
)
def test_a_perfect_denoiser_gives_the_exact_image(sampler: Any, process: Any, evaluations: int) -> None:
    torch.manual_seed(0)
    x0, denoise = images(2, 3, 16, 24), Recorder(images(2, 3, 16, 24))
    anchor = interpolate(images(2, 3, 4, 6, seed=1), scale_factor=4.0, mode="nearest")
    assert torch.allclose(sampler(denoise, process, anchor), x0, atol=1e-6)
    assert len(denoise.calls) == evaluations
    assert all(x_t.dtype == torch.float32 for x_t, _ in denoise.calls)


def test_the_published_presets_run_the_published_levels() -> None:
    imagenet = RelayHeun(200, rho=100.0)
    assert len(imagenet.levels) == 100 and imagenet.levels[0].item() == pytest.approx(0.8691, abs=5e-5)
    faces = RelayHeun(150, sigma_start=0.95, blur_prob_length=1.05)
    assert len(faces.levels) == 54 and faces.levels[0].item() == pytest.approx(0.9219, abs=5e-5)
    assert RelayHeun().levels[0].item() == pytest.approx(0.8975, abs=5e-5)
    assert RelayHeun().name == "relayheun-7-below-0.9"


def test_a_level_that_equals_the_start_is_left_out() -> None:
    ramp = levels(18, 80.0, 0.008, 7.0)
    assert len(RelayHeun(sigma_start=ramp[11].item()).levels) == 6


def test_a_deterministic_run_is_heuns_rule_in_the_noise_level() -> None:
    process, x_start = EDM(sigma_max=2.0, sigma_min=0.05), images(2, 3, 8, 8)
    denoise = gaussian_denoiser(process, 0.5**2)
    torch.manual_seed(0)
    final = EDMHeun(4)(denoise, process, x_start)
    torch.manual_seed(0)
    x, sigmas = 2.0 * torch.randn(2, 3, 8, 8, dtype=torch.float64), [*levels(4, 2.0, 0.05, 7.0).tolist(), 0.0]
    for sigma, following in pairwise(sigmas):
        slope = x * sigma / (0.25 + sigma**2)
        euler = x + (following - sigma) * slope
        slope_there = euler * following / (0.25 + following**2)
        x = x + (following - sigma) * (slope + slope_there) / 2 if following > 0 else euler
    assert torch.allclose(final.double(), x, atol=1e-5)


def test_halving_the_steps_quarters_the_error() -> None:
    process, variance = EDM(sigma_max=5.0, sigma_min=0.02), 0.25
    torch.manual_seed(0)
    noise = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    # The exact flow scales with the state's standard deviation; the last step then denoises.
    exact = 5.0 * noise * math.sqrt((variance + 0.02**2) / (variance + 5.0**2)) * variance / (variance + 0.02**2)
    errors = []
    for steps in (32, 64):
        torch.manual_seed(0)
        anchor = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
        result = EDMHeun(steps)(gaussian_denoiser(process, variance), process, anchor)
        errors.append((result - exact).abs().max().item())
    assert 3 < errors[0] / errors[1] < 5


def test_plain_heun_and_edms_agree_on_edm() -> None:
    process, anchor = EDM(), torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    denoise = gaussian_denoiser(process, 0.25)
    results = []
    for sampler in (Heun(6, spacing="trailing"), EDMHeun(6)):
        torch.manual_seed(0)
        results.append(sampler(denoise, process, anchor))
    assert torch.allclose(results[0], results[1], atol=1e-12)


def test_a_stochastic_relay_step_is_the_papers_in_the_frequencies_of_patches() -> None:
    process, size, eta = Relay(), 4, 0.2
    anchor = interpolate(images(1, 3, 4, 4), scale_factor=4.0, mode="nearest").double()
    denoise = gaussian_denoiser(process, 0.25)
    torch.manual_seed(0)
    two_levels = RelayHeun(2, eta=eta, sigma_max=0.8, sigma_min=0.3)
    final = two_levels(denoise, process, anchor)
    torch.manual_seed(0)
    c, m, basis = 0.8, 0.3, dct_basis(size)
    t = process.clock(torch.tensor([c, m], dtype=torch.float64))
    gain_c, gain_m = (row.repeat(4, 4) for row in process.gains(process.blur_sigma(t)))
    gamma = math.sqrt(1 - eta**2) * m / c

    def back(u: Tensor) -> Tensor:
        return patch_product(u, basis.mT, size)

    x = anchor + c * process.noise(anchor)
    u, u0 = patch_product(x, basis, size), patch_product(denoise(x, t[:1]), basis, size)
    predicted = back(gamma * u + (gain_m - gamma * gain_c) * u0) + eta * m * process.noise(anchor)
    v, v0 = patch_product(predicted, basis, size), patch_product(denoise(predicted, t[1:]), basis, size)
    slope = ((u - u0) / c + (v - v0) / m) / 2
    moved = (gain_m + gamma - gamma * gain_c) * u + c * (gamma * gain_c - gain_m) * slope
    corrected = back(moved) + eta * m * process.noise(anchor)
    assert torch.allclose(final, denoise(corrected, t[1:]), atol=1e-10)


def test_churn_adds_the_noise_that_lifts_the_level() -> None:
    process = EDM(sigma_max=10.0)
    denoise = Recorder(torch.zeros(64, 3, 8, 8))
    torch.manual_seed(0)
    EDMHeun(4, churn=1.0, churn_range=(0.0, 5.0))(denoise, process, torch.zeros(64, 3, 8, 8))
    steps = levels(4, 10.0, 0.002, 7.0)
    asked = torch.stack([process.std(t[:1]) for _, t in denoise.calls]).flatten()
    expected = [steps[0], steps[1], 1.25 * steps[1], steps[2], 1.25 * steps[2], steps[3], 1.25 * steps[3]]
    assert torch.allclose(asked, torch.stack(expected), rtol=1e-6)
    raised = denoise.calls[2][0]
    assert raised.std().item() == pytest.approx(1.25 * steps[1].item(), rel=0.02)


def test_what_does_not_fit_is_refused() -> None:
    x, vp = torch.zeros(1, 3, 8, 8), VP(Cosine(10))
    with pytest.raises(ValueError, match=r"none of the 3 noise levels from 80.0 to 0.5 is below sigma_start: 0.2"):
        RelayHeun(3, sigma_min=0.5, sigma_start=0.2)
    with pytest.raises(ValueError, match=r"above 1.76995"):
        RelayHeun(sigma_start=3.0)(Recorder(x), Relay(), x)
    with pytest.raises(TypeError, match="RelayHeun continues a Relay process, not EDM"):
        RelayHeun()(Recorder(x), EDM(), x)
    with pytest.raises(TypeError, match="EDMHeun needs EDM or Relay, not VP"):
        EDMHeun(3)(Recorder(x), vp, x)
    with pytest.raises(TypeError, match="churn adds noise but no blur"):
        EDMHeun(3, churn=4.0)(Recorder(x), Relay(), x)
    with pytest.raises(TypeError, match="mean of Relay"):
        Heun(3, spacing="trailing")(Recorder(x), Relay(), x)
    with pytest.raises(ValueError, match=r"above 80.*churn_range"):
        EDMHeun(3, churn=4.0).grid(EDM())
    with pytest.raises(ValueError, match=r"quantile 0.5 that the blur is set to end at; lower sigma_start"):
        RelayHeun(blur_prob_length=0.5).grid(Relay())


def test_names_tell_churn_and_an_unusual_share_of_noise() -> None:
    assert EDMHeun(18).name == "edmheun-18"
    assert EDMHeun(18, eta=0.05, churn=40).name == "edmheun-18-eta0.05-churn40"
    assert RelayHeun(eta=0.0).name == "relayheun-7-below-0.9-eta0"
