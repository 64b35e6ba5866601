import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.dos_solvers import DoSMultistep, derivative_weights
from lightning_modules.diffusion.edm import EDMProcess
from lightning_modules.diffusion.flow import RectifiedFlow
from lightning_modules.diffusion.parameterization import Noised, ShiftedEpsilon
from lightning_modules.diffusion.process import Process, expand, noise_to_signal
from lightning_modules.diffusion.relay import RelayProcess
from lightning_modules.diffusion.residual_shift import ResidualShift
from lightning_modules.diffusion.samplers import Ancestral, DPMSolverPlusPlus, Sampler
from lightning_modules.diffusion.schedules import Cosine, ScaledLinear
from lightning_modules.diffusion.vp import VP, DomainShift
from tests.fakes import FakeDenoiser


def published(**arguments: int) -> DomainShift:
    return DomainShift(ScaledLinear(1000, 0.00085, 0.012), shift_steps=500, **arguments)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_published_levels() -> None:
    process = published()
    t = times(0.001, 0.25, 0.251, 0.5, 1.0)
    shift = process.anchor_alpha(t) / process.signal(t)
    torch.testing.assert_close(shift[:3], times(2.4674e-6, 0.498429, 0.501571), atol=1e-6, rtol=1e-4)
    assert shift[4] == 1
    torch.testing.assert_close(process.signal(t)[3:] ** 2, times(0.2776697, 0.0046601), atol=1e-7, rtol=0)


def test_a_clean_state_has_neither_noise_nor_anchor() -> None:
    process, x0 = published(), torch.randn(1, 3, 2, 2)
    anchor = torch.full_like(x0, 7.0)
    assert torch.equal(process.diffuse(x0=x0, anchor=anchor, t=times(0.0), noise=anchor), x0)


@pytest.mark.parametrize(
    "steps,indices",
    [
        (1, [499]),
        (4, [499, 374, 250, 125]),
        (5, [499, 399, 299, 200, 100]),
        (10, [499, 449, 399, 349, 299, 250, 200, 150, 100, 50]),
    ],
)
def test_published_grids(steps: int, indices: list[int]) -> None:
    grid = DoSMultistep(steps, final="reference").grid(published())
    assert (grid * 1000 - 1).round().int().tolist() == [*indices, 0]
    assert DoSMultistep(steps).grid(published())[-1] == 0


@pytest.mark.parametrize("t,s", [(0.5, 0.4), (0.5, 0.001), (0.3, 0.201), (0.101, 0.001)])
def test_step_keeps_the_marginals(t: float, s: float) -> None:
    """What multiplies the clean image, the anchor and the noise after a step from the marginal at t is that at s."""
    process = published()
    here, there = times(t).expand(4), times(s).expand(4)
    unit = torch.eye(4, dtype=torch.float64).view(4, 4, 1, 1, 1)
    stepped = process.step(
        unit[0], x0=unit[2], anchor=unit[1], t=here, s=there, eta=1.0, randn=lambda like: unit[3].to(like)
    )
    c_x, c_anchor, c_x0, c_noise = stepped.flatten()
    alpha = (process.alpha(here)[0], process.alpha(there)[0])
    anchor = (process.anchor_alpha(here)[0], process.anchor_alpha(there)[0])
    std = (process.std(here)[0], process.std(there)[0])
    torch.testing.assert_close(c_x * alpha[0] + c_x0, alpha[1], atol=1e-14, rtol=0)
    torch.testing.assert_close(c_x * anchor[0] + c_anchor, anchor[1], atol=1e-14, rtol=0)
    torch.testing.assert_close(c_x**2 * std[0] ** 2 + c_noise**2, std[1] ** 2, atol=1e-14, rtol=0)


def test_derivative_weights_are_the_integrals() -> None:
    here, there = times(2.0), times(0.7)
    middle = there + (here - there) * (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    kernel = 2 * there**2 / middle**3 * (here - there) / 200_000
    first, second = derivative_weights(here, there)
    torch.testing.assert_close((kernel * (middle - here)).sum(), first[0], atol=1e-9, rtol=0)
    torch.testing.assert_close((kernel * (middle - here) ** 2 / 2).sum(), second[0], atol=1e-9, rtol=0)


class Curve:
    """An estimate that is a polynomial in the noise-to-signal ratio and ignores the state."""

    def __init__(self, process: Process, coefficients: tuple[float, ...]) -> None:
        self.process, self.coefficients = process, coefficients

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        ratio = noise_to_signal(self.process, t).view(-1, 1, 1, 1)
        return sum(c * ratio**power for power, c in enumerate(self.coefficients)) * torch.ones_like(x_t)


def exact(process: Process, coefficients: tuple[float, ...], x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The noise-free solution for `Curve`, from the integral of 2 there^2 / r^3 times powers of r."""
    here, there = noise_to_signal(process, t), noise_to_signal(process, s)
    c0, c1, c2 = (*coefficients, 0.0, 0.0)[:3]
    integral = c0 * (1 - (there / here) ** 2) + c1 * 2 * there**2 * (1 / there - 1 / here)
    integral = integral + c2 * 2 * there**2 * torch.log(here / there)
    kept, _ = process.kept_and_fresh(t, s)
    return kept / process.std(t) * x + process.alpha(s) * integral


@pytest.mark.parametrize("order,coefficients", [(1, (0.4,)), (2, (0.4, 0.3))])
def test_orders_are_exact_for_polynomials(order: int, coefficients: tuple[float, ...]) -> None:
    """Order p continues a polynomial of degree p - 1 exactly, once it has p estimates."""
    process = VP(ScaledLinear(1000, 0.00085, 0.012))
    denoiser = FakeDenoiser(process, torch.zeros(1, 1, 1, 1), Curve(process, coefficients))
    sampler, nodes = DoSMultistep(6, order), times(0.9, 0.7, 0.5, 0.35)[:, None]
    x, memory = torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64), ()
    for t, s in pairwise(nodes[:order]):
        x, memory = sampler.step(denoiser, x, memory, t=t, s=s, randn=torch.zeros_like)
    t, s = nodes[order - 1], nodes[order]
    stepped, _ = sampler.step(denoiser, x, memory, t=t, s=s, randn=torch.zeros_like)
    torch.testing.assert_close(stepped, exact(process, coefficients, x, t, s).view(1, 1, 1, 1))


def test_order_one_is_ancestral_sampling() -> None:
    process, anchor = published(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    results = []
    for sampler in (DoSMultistep(5, 1), Ancestral(5)):
        torch.manual_seed(3)
        results.append(sampler(FakeDenoiser(process, anchor, lambda x, t: 0.5 * x.tanh())))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_final_x0_is_the_last_estimate(order: int) -> None:
    process, anchor = published(), torch.randn(1, 3, 4, 4)
    estimates = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        estimates.append(0.5 * x_t.tanh() + 0.2 * anchor)
        return estimates[-1]

    result = DoSMultistep(5, order)(FakeDenoiser(process, anchor, denoise))
    torch.testing.assert_close(result, estimates[-1])
    assert len(estimates) == 5 and result.dtype == torch.float32


def test_one_step_is_nearly_the_estimate_with_the_first_level_of_noise() -> None:
    anchor = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    ones = FakeDenoiser(published(), anchor, lambda x, t: torch.ones_like(x))
    result = DoSMultistep(1, final="reference")(ones, torch.zeros_like)
    assert math.isclose(result.item(), 0.99957, abs_tol=1e-5)


@pytest.mark.parametrize("order", [2, 3])
def test_a_sample_that_was_not_stepped_has_no_derivative(order: int) -> None:
    process, x = published(), torch.randn(1, 3, 2, 2)
    sampler, denoiser, memory = DoSMultistep(5, order), FakeDenoiser(process, x, lambda x, t: x), ()
    for t, s in ((0.4, 0.4), (0.4, 0.3), (0.3, 0.2), (0.2, 0.1)):
        x, memory = sampler.step(denoiser, x, memory, t=times(t), s=times(s), randn=torch.randn_like)
    assert x.isfinite().all()


def test_start_and_training_times() -> None:
    process, anchor = published(train_steps=500), torch.ones(1, 1, 2, 2)
    start = process.start(anchor=anchor, t=times(0.5), noise=torch.zeros_like(anchor))
    torch.testing.assert_close(start, anchor * 0.5269437, atol=1e-6, rtol=0)
    t = process.sample_t(4000)
    assert 0 < t.min() and t.max() == 0.5
    assert published().sample_t(4000).max() > 0.99


def test_shifted_epsilon_turns_an_l1_loss_into_that_of_clean_states() -> None:
    process, parameterization = published(), ShiftedEpsilon()
    x0, anchor, noise, output = torch.randn(4, 2, 3, 4, 4, dtype=torch.float64)
    t = times(0.02, 0.7)
    x_t = process.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
    target = parameterization.target(process, Noised(x_t=x_t, x0=x0, anchor=anchor, noise=noise, t=t))
    weight = parameterization.weight(process, t).view(-1, 1, 1, 1)
    estimate = parameterization.x0(process, output, x_t=x_t, anchor=anchor, t=t)
    torch.testing.assert_close(weight * (output - target).abs(), (estimate - x0).abs())
    torch.testing.assert_close(parameterization.x0(process, target, x_t=x_t, anchor=anchor, t=t), x0)


TABLE = 2048
MARKOV: dict[str, Process] = {
    "vp": VP(Cosine(TABLE)),
    "domain shift": DomainShift(ScaledLinear(TABLE, 0.0004, 0.006), shift_steps=TABLE),
    "residual shift": ResidualShift(TABLE, 0.02, power=1.0),
    "rectified flow": RectifiedFlow(from_anchor=True, sigma=0.5),
}


@pytest.mark.parametrize("process", MARKOV.values(), ids=MARKOV)
@pytest.mark.parametrize(("t", "s"), [(0.75, 0.5), (0.5, 0.125), (0.25, 0.0)])
def test_the_posterior_ratio_is_what_the_step_weighs_the_estimate_by(process: Process, t: float, s: float) -> None:
    here, there, nothing = times(t), times(s), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    weight = process.step(
        nothing, x0=nothing + 1, anchor=nothing, t=here, s=there, eta=1.0, randn=torch.zeros_like
    ).flatten()
    share = 1 - (process.posterior_ratio(there) / process.posterior_ratio(here)) ** 2
    torch.testing.assert_close(weight, process.alpha(there) * share, atol=1e-12, rtol=1e-9)


def mixture_denoiser(process: Process, anchor: Tensor, spread: float = 0.2) -> FakeDenoiser:
    """The exact posterior mean where each pixel of the clean image is from N(-0.1, spread^2) or N(0.5, spread^2).

    Of a single normal distribution the mean is linear in the state, and one posterior step of VP exact.
    """

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, std = expand(process.alpha(t), x_t), expand(process.std(t), x_t)
        variance = (alpha * spread) ** 2 + std**2
        centres = torch.tensor([-0.1, 0.5], dtype=x_t.dtype)
        means = [process.mean(x0=torch.full_like(x_t, centre), anchor=anchor, t=t) for centre in centres]
        off = x_t - torch.stack(means)
        weights = (-(off**2) / (2 * variance)).softmax(dim=0)
        return (weights * (centres.view(2, 1, 1, 1, 1) + alpha * spread**2 / variance * off)).sum(dim=0)

    return FakeDenoiser(process, anchor, denoise)


def without_noise(sampler: Sampler, process: Process, steps: int) -> Tensor:
    """Where a run from 7/8 to 1/4 of the table ends that adds no noise: one of the solver's equation without it."""
    x = torch.linspace(-1, 1, 4, dtype=torch.float64).view(1, 1, 2, 2)
    denoiser, memory = mixture_denoiser(process, torch.full_like(x, -0.5)), ()
    nodes = torch.linspace(0.875, 0.25, steps + 1, dtype=torch.float64)[:, None]
    for t, s in pairwise(nodes):
        x, memory = sampler.step(denoiser, x, memory, t=t, s=s, randn=torch.zeros_like)
    return x


@pytest.mark.parametrize("process", MARKOV.values(), ids=MARKOV)
def test_orders_hold_for_every_process_with_a_posterior(process: Process) -> None:
    """Halving the step divides the error of second order by four; the first, extrapolated, is the solution."""
    coarse, fine = (without_noise(Ancestral(1), process, steps) for steps in (640, 1280))
    solution = 2 * fine - coarse
    for sampler, ratio in (
        (DoSMultistep(1, order=1), 2.0),
        (DoSMultistep(1, order=2), 4.0),
        (DoSMultistep(1, order=3), 4.0),  # whose first derivative is of first order, as published
        (DPMSolverPlusPlus(1, stochastic=True), 4.0),
    ):
        errors = [(without_noise(sampler, process, steps) - solution).abs().max().item() for steps in (40, 80)]
        assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.15), sampler.solver


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (EDMProcess(), r"EDMProcess, whose stochastic steps replace all noise; choose EDMHeun, Ancestral"),
        (RelayProcess(), r"mean of RelayProcess is not a multiple of x0"),
    ],
    ids=["edm", "relay"],
)
def test_processes_without_a_posterior_are_refused(process: Process, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        DoSMultistep(5).grid(process)


def test_the_reference_end_needs_a_table() -> None:
    class Continuous(VP):
        steps = None  # type: ignore[assignment]

        def __init__(self) -> None: ...

        def alpha(self, t: Tensor) -> Tensor:
            return 1 - t / 2

        def std(self, t: Tensor) -> Tensor:
            return (1 - self.alpha(t) ** 2).sqrt()

        def grid(self, steps: int) -> Tensor:
            return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    assert DoSMultistep(5).grid(Continuous())[-1] == 0
    with pytest.raises(TypeError, match="final: reference ends at a table entry, and Continuous has no table"):
        DoSMultistep(5, final="reference").grid(Continuous())


@pytest.mark.parametrize("steps", [0, 500])
def test_step_counts_beyond_the_slide_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="completes its shift in 500 steps"):
        DoSMultistep(steps).grid(published())


def test_other_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="orders 1, 2 and 3, not 4"):
        DoSMultistep(5, order=4)


@pytest.mark.parametrize("arguments", [{"shift_steps": 1001}, {"shift_steps": 1}, {"train_steps": 2000}])
def test_slides_that_do_not_fit_the_table_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="1000 steps"):
        DomainShift(ScaledLinear(1000, 0.00085, 0.012), **{"shift_steps": 500, **arguments})


def test_name() -> None:
    assert DoSMultistep(5).name(published()) == "dos3-5"
    assert DoSMultistep(4, 1, final="reference").name(published()) == "dos1ref-4"


def decay_error(third: Literal["published", "corrected"], steps: int) -> float:
    """Error of order 3 over `steps` steps where the estimate is `exp(-ratio)` and the first two steps were exact."""
    process = published()
    sampler, anchor = DoSMultistep(5, third=third), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    width = 0.25 / steps
    nodes = torch.linspace(0.35 + 2 * width, 0.1, steps + 3, dtype=torch.float64)[:, None]

    def decay(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.exp(-noise_to_signal(process, t)).view(1, 1, 1, 1)

    def solution(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        here, there = noise_to_signal(process, t), noise_to_signal(process, s)
        ratios = there + (here - there) * (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
        integral = (2 * there**2 / ratios**3 * torch.exp(-ratios)).mean() * (here - there)
        return process.kept_and_fresh(t, s)[0] / process.std(t) * x + process.alpha(s) * integral

    x, memory = torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64), ()
    for index, (t, s) in enumerate(pairwise(nodes)):
        if index == 2:  # what was stepped before only filled the memory
            x, begin = torch.full_like(x, 0.8), t
        denoiser = FakeDenoiser(process, anchor, decay)
        x, memory = sampler.step(denoiser, x, memory, t=t, s=s, randn=torch.zeros_like)
    return float((x - solution(torch.full_like(x, 0.8), begin, nodes[-1])).abs())


@pytest.mark.parametrize(("third", "order"), [("published", 2.0), ("corrected", 3.0)])
def test_the_published_third_order_converges_as_a_second_and_the_corrected_as_a_third(
    third: Literal["published", "corrected"], order: float
) -> None:
    measured = math.log2(decay_error(third, 80) / decay_error(third, 160))
    assert measured == pytest.approx(order, abs=0.1)


def test_a_correction_belongs_to_order_three() -> None:
    with pytest.raises(ValueError, match="third: corrected corrects order 3, and order is 2"):
        DoSMultistep(5, order=2, third="corrected")
    assert DoSMultistep(5, third="corrected").name(published()) == "dos3c-5"
