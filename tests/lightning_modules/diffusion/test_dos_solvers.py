import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.dos_solvers import DoSMultistep, derivative_weights
from lightning_modules.diffusion.parameterization import Noised, ShiftedEpsilon
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.resshift import ResShift
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.schedules import ScaledLinear
from lightning_modules.diffusion.spacing import noise_to_signal
from lightning_modules.diffusion.vp import VP, DomainShift


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
    process.noise = lambda like: torch.tensor([0.0, 0.0, 0.0, 1.0]).double().view(4, 1, 1, 1)
    unit = torch.eye(4, dtype=torch.float64).view(4, 4, 1, 1, 1)
    c_x, c_anchor, c_x0, c_noise = process.step(unit[0], x0=unit[2], anchor=unit[1], t=here, s=there, eta=1.0).flatten()
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
    return process.kept_std(t, s) / process.std(t) * x + process.alpha(s) * integral


@pytest.mark.parametrize("order,coefficients", [(1, (0.4,)), (2, (0.4, 0.3))])
def test_orders_are_exact_for_polynomials(order: int, coefficients: tuple[float, ...]) -> None:
    """Order p continues a polynomial of degree p - 1 exactly, once it has p estimates."""
    process = VP(ScaledLinear(1000, 0.00085, 0.012))
    process.noise = torch.zeros_like
    step = DoSMultistep(6, order).stepper(Curve(process, coefficients), process, torch.zeros(1, 1, 1, 1))
    nodes = times(0.9, 0.7, 0.5, 0.35)[:, None]
    x = torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64)
    for t, s in pairwise(nodes[:order]):
        x = step(x, t=t, s=s)
    t, s = nodes[order - 1], nodes[order]
    torch.testing.assert_close(step(x, t=t, s=s), exact(process, coefficients, x, t, s).view(1, 1, 1, 1))


def test_order_one_is_ancestral_sampling() -> None:
    process, anchor = published(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    results = []
    for sampler in (DoSMultistep(5, 1), Ancestral(5)):
        torch.manual_seed(3)
        results.append(sampler(lambda x, t: 0.5 * x.tanh(), process, anchor))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_final_x0_is_the_last_estimate(order: int) -> None:
    process, anchor = published(), torch.randn(1, 3, 4, 4)
    estimates = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        estimates.append(0.5 * x_t.tanh() + 0.2 * anchor)
        return estimates[-1]

    result = DoSMultistep(5, order)(denoise, process, anchor)
    torch.testing.assert_close(result, estimates[-1])
    assert len(estimates) == 5 and result.dtype == torch.float32


def test_one_step_is_nearly_the_estimate_with_the_first_level_of_noise() -> None:
    process = published()
    process.noise = torch.zeros_like
    anchor = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    result = DoSMultistep(1, final="reference")(lambda x, t: torch.ones_like(x), process, anchor)
    assert math.isclose(result.item(), 0.99957, abs_tol=1e-5)


@pytest.mark.parametrize("order", [2, 3])
def test_a_sample_that_was_not_stepped_has_no_derivative(order: int) -> None:
    process, x = published(), torch.randn(1, 3, 2, 2)
    step = DoSMultistep(5, order).stepper(lambda x, t: x, process, x)
    for t, s in ((0.4, 0.4), (0.4, 0.3), (0.3, 0.2), (0.2, 0.1)):
        x = step(x, t=times(t), s=times(s))
    assert x.isfinite().all()


def test_start_and_training_times() -> None:
    process, anchor = published(train_steps=500), torch.ones(1, 1, 2, 2)
    start = process.start(anchor=anchor, t=times(0.5), noise=torch.zeros_like(anchor))
    torch.testing.assert_close(start, anchor * 0.5269437, atol=1e-6, rtol=0)
    t = process.sample_t(4000, torch.device("cpu"))
    assert 0 < t.min() and t.max() == 0.5
    assert published().sample_t(4000, torch.device("cpu")).max() > 0.99


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


def test_other_processes_are_refused() -> None:
    with pytest.raises(TypeError, match="not ResShift; choose Ancestral"):
        DoSMultistep(5).grid(ResShift(15, 0.04))


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
    assert DoSMultistep(5).name == "dos3-5"
    assert DoSMultistep(4, 1, final="reference").name == "dos1ref-4"
