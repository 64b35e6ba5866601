"""Rectified flow: straight lines, their reverse step, and every sampler that fits them."""

import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.dos_solvers import DoSMultistep
from lightning_modules.diffusion.edm_samplers import EDMHeun
from lightning_modules.diffusion.flow import FlowVelocity, RectifiedFlow
from lightning_modules.diffusion.parameterization import Noised
from lightning_modules.diffusion.process import expand
from lightning_modules.diffusion.samplers import DDIM, Ancestral, DPMSolverPlusPlus, Heun, Sampler
from tests.fakes import FakeDenoiser

MEAN, STD = 0.2, 0.1  # of the clean images
FLOWS = [RectifiedFlow(), RectifiedFlow(from_anchor=True, sigma=0.5)]


def exact(process: RectifiedFlow, anchor: Tensor) -> FakeDenoiser:
    """The posterior mean of normal clean images: what a perfect network would write."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, std = (expand(value, x_t) for value in (process.alpha(t), process.std(t)))
        rest = x_t - process.mean(x0=torch.full_like(x_t, MEAN), anchor=anchor, t=t)
        return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + std**2) * rest

    return FakeDenoiser(process, anchor, denoise)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("flow", FLOWS, ids=["noise", "anchor"])
def test_states_lie_on_straight_lines(flow: RectifiedFlow) -> None:
    x0, anchor, noise = torch.randn(3, 1, 3, 4, 4, dtype=torch.float64)
    start, end = (flow.diffuse(x0=x0, anchor=anchor, t=times(t), noise=noise) for t in (0.0, 1.0))
    assert torch.equal(start, x0)
    torch.testing.assert_close(end, anchor + 0.5 * noise if flow.anchored else noise)
    middle = flow.diffuse(x0=x0, anchor=anchor, t=times(0.3), noise=noise)
    torch.testing.assert_close(middle, 0.7 * start + 0.3 * end)


@pytest.mark.parametrize("flow", FLOWS, ids=["noise", "anchor"])
def test_a_velocity_stands_for_the_clean_state(flow: RectifiedFlow) -> None:
    x0, anchor, noise = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64)
    t = times(0.9, 0.01)
    x_t = flow.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
    velocity = FlowVelocity()
    target = velocity.target(flow, Noised(x_t=x_t, x0=x0, anchor=anchor, noise=noise, t=t))
    torch.testing.assert_close(target, (x_t - x0) / t.view(-1, 1, 1, 1))
    torch.testing.assert_close(velocity.x0(flow, target, x_t=x_t, anchor=anchor, t=t), x0)


@pytest.mark.parametrize("flow", FLOWS, ids=["noise", "anchor"])
def test_a_deterministic_step_is_eulers(flow: RectifiedFlow) -> None:
    x_t, x0, anchor = torch.randn(3, 1, 3, 4, 4, dtype=torch.float64)
    t, s = times(0.6), times(0.35)
    x_s = flow.step(x_t, x0=x0, anchor=anchor, t=t, s=s, eta=0.0)
    torch.testing.assert_close(x_s, x_t + (0.35 - 0.6) * (x_t - x0) / 0.6)


@pytest.mark.parametrize("flow", FLOWS, ids=["noise", "anchor"])
def test_kept_and_fresh_noise_make_up_the_level(flow: RectifiedFlow) -> None:
    t, s = times(1.0, 0.7, 0.2), times(0.8, 0.1, 0.0)
    kept, fresh = flow.kept_and_fresh(t, s)
    torch.testing.assert_close(kept**2 + fresh**2, flow.std(s) ** 2)


@pytest.mark.parametrize("flow", FLOWS, ids=["noise", "anchor"])
@pytest.mark.parametrize(
    "sampler",
    [
        Ancestral(200),
        DDIM(200),
        DPMSolverPlusPlus(60),
        DPMSolverPlusPlus(60, stochastic=True),
        DoSMultistep(60, 2),
        DoSMultistep(60, 3),
    ],
    ids=lambda sampler: sampler.name(FLOWS[0]),
)
def test_samplers_draw_the_distribution_of_clean_images(flow: RectifiedFlow, sampler: Sampler) -> None:
    torch.manual_seed(0)
    images = sampler(exact(flow, torch.full((64, 1, 32, 32), 0.3)))
    assert images.mean().item() == pytest.approx(MEAN, abs=0.004)
    assert images.std().item() == pytest.approx(STD, rel=0.08)


def test_samplers_that_do_not_fit_say_so() -> None:
    for sampler, reason in (
        (Heun(5), "karras spacing needs a process with a table of steps"),
        (Heun(5, spacing="trailing"), "infinite at the start of RectifiedFlow"),
        (EDMHeun(5), "without shrinking the image"),
    ):
        with pytest.raises((TypeError, ValueError), match=reason):
            sampler.grid(FLOWS[0])


def test_a_flow_needs_noise_and_steps() -> None:
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        RectifiedFlow(sigma=0)
    with pytest.raises(ValueError, match="at least one step, got steps=0"):
        RectifiedFlow().grid(0)
