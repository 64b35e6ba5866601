"""Heun's sampler for EDM and Relay Diffusion, against formulas, exact solutions and refusals."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_modules.diffusion.edm import EDMProcess, levels
from lightning_modules.diffusion.edm_samplers import EDMHeun
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.relay import RelayProcess, dct_basis, patch_product
from lightning_modules.diffusion.relay_sampler import RelayHeun
from lightning_modules.diffusion.samplers import DDIM, Ancestral, Heun, Sampler
from lightning_modules.diffusion.schedules import Cosine
from lightning_modules.diffusion.spacing import time_at
from lightning_modules.diffusion.vp import VP
from tests.fakes import FakeDenoiser


class Recorder:
    """Always answers `x0`, and remembers what it was asked."""

    def __init__(self, x0: Tensor) -> None:
        self.x0, self.calls = x0, list[tuple[Tensor, Tensor]]()

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.calls.append((x_t, t))
        return self.x0


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gaussian_denoiser(process: EDMProcess | RelayProcess, anchor: Tensor, variance: float) -> FakeDenoiser:
    """The exact denoiser of white Gaussian images: the mean of x0 given x_t where the mean of x_t is x0."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        sigma = process.std(t).view(-1, 1, 1, 1)
        return variance / (variance + sigma**2) * x_t

    return FakeDenoiser(process, anchor, denoise)


@pytest.mark.parametrize(
    ("sampler", "process", "evaluations"),
    [
        (RelayHeun(), RelayProcess(), 13),
        (RelayHeun(40), RelayProcess(sigma_start=0.3), 19),
        (RelayHeun(1, sigma_max=0.5), RelayProcess(), 1),
        (RelayHeun(blur_prob_length=1.05), RelayProcess(prob_length=0.89, blur_sigma_max=2.0, sigma_start=1.2), 13),
        (EDMHeun(1), EDMProcess(), 1),
        (EDMHeun(5), EDMProcess(), 9),
        (EDMHeun(5, eta=0.05), EDMProcess(), 9),
        (EDMHeun(5, churn=40, churn_range=(0.05, 50.0), churn_noise=1.003), EDMProcess(), 9),
        (EDMHeun(6), RelayProcess(), 11),
        (Ancestral(6, eta=0.2), RelayProcess(), 6),
        (DDIM(6), RelayProcess(), 6),
    ],
)
def test_a_perfect_denoiser_gives_the_exact_image(sampler: Sampler, process: Process, evaluations: int) -> None:
    torch.manual_seed(0)
    x0, denoise = images(2, 3, 16, 24), Recorder(images(2, 3, 16, 24))
    anchor = interpolate(images(2, 3, 4, 6, seed=1), scale_factor=4.0, mode="nearest")
    assert torch.allclose(sampler(FakeDenoiser(process, anchor, denoise)), x0, atol=1e-6)
    assert len(denoise.calls) == evaluations
    assert all(x_t.dtype == torch.float32 for x_t, _ in denoise.calls)


def levels_run(sampler: RelayHeun, process: RelayProcess) -> Tensor:
    """Noise levels of the run, without the clean image's."""
    return process.std(sampler.grid(process)[:-1])


def test_the_published_presets_run_the_published_levels() -> None:
    imagenet = levels_run(RelayHeun(200, rho=100.0), RelayProcess())
    assert len(imagenet) == 100 and imagenet[0].item() == pytest.approx(0.8691, abs=5e-5)
    faces = levels_run(RelayHeun(150, blur_prob_length=1.05), RelayProcess(prob_length=0.89, sigma_start=0.95))
    assert len(faces) == 54 and faces[0].item() == pytest.approx(0.9219, abs=5e-5)
    assert levels_run(RelayHeun(), RelayProcess())[0].item() == pytest.approx(0.8975, abs=5e-5)
    assert RelayHeun().name(RelayProcess()) == "relayheun-7-below-0.9"


def test_a_level_that_equals_the_start_is_left_out() -> None:
    ramp = levels(18, 80.0, 0.008, 7.0)
    assert len(levels_run(RelayHeun(), RelayProcess(sigma_start=ramp[11].item()))) == 6


def test_a_deterministic_run_is_heuns_rule_in_the_noise_level() -> None:
    process = EDMProcess(sigma_max=2.0, sigma_min=0.05)
    torch.manual_seed(0)
    final = EDMHeun(4)(gaussian_denoiser(process, images(2, 3, 8, 8), 0.5**2))
    torch.manual_seed(0)
    x, sigmas = 2.0 * torch.randn(2, 3, 8, 8, dtype=torch.float64), [*levels(4, 2.0, 0.05, 7.0).tolist(), 0.0]
    for sigma, following in pairwise(sigmas):
        slope = x * sigma / (0.25 + sigma**2)
        euler = x + (following - sigma) * slope
        slope_there = euler * following / (0.25 + following**2)
        x = x + (following - sigma) * (slope + slope_there) / 2 if following > 0 else euler
    assert torch.allclose(final.double(), x, atol=1e-5)


def test_halving_the_steps_quarters_the_error() -> None:
    process, variance = EDMProcess(sigma_max=5.0, sigma_min=0.02), 0.25
    torch.manual_seed(0)
    noise = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    # The exact flow scales with the state's standard deviation; the last step then denoises.
    exact = 5.0 * noise * math.sqrt((variance + 0.02**2) / (variance + 5.0**2)) * variance / (variance + 0.02**2)
    errors = []
    for steps in (32, 64):
        torch.manual_seed(0)
        anchor = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
        result = EDMHeun(steps)(gaussian_denoiser(process, anchor, variance))
        errors.append((result - exact).abs().max().item())
    assert 3 < errors[0] / errors[1] < 5


def test_plain_heun_and_edms_agree_on_edm() -> None:
    denoiser = gaussian_denoiser(EDMProcess(), torch.zeros(2, 3, 8, 8, dtype=torch.float64), 0.25)
    results = []
    for sampler in (Heun(6, spacing="trailing"), EDMHeun(6)):
        torch.manual_seed(0)
        results.append(sampler(denoiser))
    assert torch.allclose(results[0], results[1], atol=1e-12)


def test_a_stochastic_relay_step_is_the_papers_in_the_frequencies_of_patches() -> None:
    process, size, eta = RelayProcess(), 4, 0.2
    anchor = interpolate(images(1, 3, 4, 4), scale_factor=4.0, mode="nearest").double()
    denoise = gaussian_denoiser(process, anchor, 0.25)
    torch.manual_seed(0)
    two_levels = RelayHeun(2, eta=eta, sigma_max=0.8, sigma_min=0.3)
    final = two_levels(denoise)
    torch.manual_seed(0)
    c, m, basis = 0.8, 0.3, dct_basis(size)
    t = time_at(process, torch.tensor([c, m], dtype=torch.float64))
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
    process = EDMProcess(sigma_max=10.0)
    denoise = Recorder(torch.zeros(64, 3, 8, 8))
    torch.manual_seed(0)
    EDMHeun(4, churn=1.0, churn_range=(0.0, 5.0))(FakeDenoiser(process, torch.zeros(64, 3, 8, 8), denoise))
    steps = levels(4, 10.0, 0.002, 7.0)
    asked = torch.stack([process.std(t[:1]) for _, t in denoise.calls]).flatten()
    expected = [steps[0], steps[1], 1.25 * steps[1], steps[2], 1.25 * steps[2], steps[3], 1.25 * steps[3]]
    assert torch.allclose(asked, torch.stack(expected), rtol=1e-6)
    raised = denoise.calls[2][0]
    assert raised.std().item() == pytest.approx(1.25 * steps[1].item(), rel=0.02)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(1, 3, 8, 8)
    edm, relay, vp = (
        FakeDenoiser(process, x, Recorder(x)) for process in (EDMProcess(), RelayProcess(), VP(Cosine(10)))
    )
    with pytest.raises(ValueError, match=r"none of the 3 noise levels from 80.0 to 0.5 is below .* sigma_start: 0.2"):
        RelayHeun(3, sigma_min=0.5).grid(RelayProcess(sigma_start=0.2))
    with pytest.raises(ValueError, match=r"above 1.76995"):
        RelayProcess(sigma_start=3.0)
    with pytest.raises(TypeError, match="RelayHeun continues a RelayProcess, not EDM"):
        RelayHeun()(edm)
    with pytest.raises(TypeError, match=r"EDMHeun needs a process that adds noise .* EDM's or Relay's, not VP"):
        EDMHeun(3)(vp)
    with pytest.raises(TypeError, match="churn adds noise but no blur"):
        EDMHeun(3, churn=4.0)(relay)
    with pytest.raises(TypeError, match="mean of Relay"):
        Heun(3, spacing="trailing")(relay)
    with pytest.raises(ValueError, match=r"above 80.*churn_range"):
        EDMHeun(3, churn=4.0).grid(EDMProcess())
    with pytest.raises(ValueError, match=r"quantile 0.5 that the blur is set to end at; lower sigma_start"):
        RelayHeun(blur_prob_length=0.5).grid(RelayProcess())


def test_names_tell_churn_and_an_unusual_share_of_noise() -> None:
    assert EDMHeun(18).name(EDMProcess()) == "edmheun-18"
    assert EDMHeun(18, eta=0.05, churn=40).name(EDMProcess()) == "edmheun-18-eta0.05-churn40"
    assert RelayHeun(eta=0.0).name(RelayProcess()) == "relayheun-7-below-0.9-eta0"


def test_steps_are_computed_in_double_precision() -> None:
    process, anchor = RelayProcess(), images(1, 3, 8, 8)
    asked: list[torch.dtype] = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        asked.append(x_t.dtype)
        return 0.5 * x_t

    denoiser = FakeDenoiser(process, anchor, denoise)
    sampler, t = RelayHeun(), torch.tensor([0.5], dtype=torch.float64)
    x, _ = sampler.init(denoiser, t, torch.randn_like)
    estimate = sampler.estimate(denoiser, x, t)
    assert (x.dtype, estimate.dtype, asked) == (torch.float64, torch.float64, [torch.float32])
    assert sampler(denoiser).dtype == torch.float32


@pytest.mark.parametrize(("churn", "share"), [(0.5, 0.1), (40.0, 2**0.5 - 1)])
def test_churn_adds_its_noise_before_the_step(churn: float, share: float) -> None:
    """Lines 4 to 6 of EDM's Algorithm 2: sigma grows by gamma within S_min and S_max; S_noise scales what is added."""
    process, asked = EDMProcess(), Recorder(torch.zeros(1, 3, 4, 4))
    sampler = EDMHeun(5, churn=churn, churn_range=(0.05, 50.0), churn_noise=1.5)
    t, s = process.grid(5)[1:3, None]
    x, sigma = images(1, 3, 4, 4).double(), process.std(t).item()
    sampler.step(FakeDenoiser(process, asked.x0, asked), x, (), t=t, s=s, randn=torch.ones_like)
    state, time = asked.calls[0]
    raised = sigma * (1 + share)
    torch.testing.assert_close(state, (x + 1.5 * math.sqrt(raised**2 - sigma**2)).float())
    assert process.std(time).item() == pytest.approx(raised)

    outside = (
        EDMHeun(5, churn=churn, churn_range=(0.0, 0.9 * sigma)),
        EDMHeun(5, churn=churn, churn_range=(1.1 * sigma, 90.0)),
    )
    for sampler in outside:
        asked.calls.clear()
        sampler.step(FakeDenoiser(process, asked.x0, asked), x, (), t=t, s=s, randn=torch.ones_like)
        state, time = asked.calls[0]
        assert torch.equal(state, x.float()) and torch.equal(time, t)
