"""YODA's clock, what it promises, and pixels that join a run of a multistep sampler."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.dos_solvers import DoSMultistep
from lightning_modules.diffusion.edm import EDMProcess
from lightning_modules.diffusion.flow import RectifiedFlow
from lightning_modules.diffusion.parameterization import Parameterization
from lightning_modules.diffusion.process import Process, expand
from lightning_modules.diffusion.randomness import KeyedNoise
from lightning_modules.diffusion.relay import RelayProcess
from lightning_modules.diffusion.relay_sampler import RelayHeun
from lightning_modules.diffusion.residual_shift import ResidualShift
from lightning_modules.diffusion.samplers import DDIM, Ancestral, DPMSolverPlusPlus, Sampler
from lightning_modules.diffusion.schedules import Linear, ScaledLinear
from lightning_modules.diffusion.vp import VP, DomainShift
from lightning_modules.diffusion.yoda import YODA, on_tiles
from lightning_modules.networks.attention_maps import Constant

MEAN, SPREAD = 0.3, 0.2  # of a clean pixel


class Exact(Parameterization):
    """The best estimate of clean pixels that are drawn from N(MEAN, SPREAD^2), without a network."""

    label = None

    def read(self, process: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x_t, t

    def target(self, process: Process, noised: Any) -> Tensor:
        raise NotImplementedError

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        alpha, noise = expand(process.alpha(t), x_t), expand(process.std(t), x_t)
        expected = process.mean(x0=torch.full_like(x_t, MEAN), anchor=anchor, t=t)
        return MEAN + alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + noise**2) * (x_t - expected)


class Nothing(nn.Module):
    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return x


def noise(purpose: str, count: int) -> KeyedNoise:
    return KeyedNoise.of([f"{purpose} {index}" for index in range(count)], purpose, torch.device("cpu"))


def run(sampler: Sampler, process: Process, yoda: YODA, attention: Tensor, anchor: Tensor) -> Tensor:
    """The end of a run with the exact denoiser, from `anchor [B,1,h,w]` under a map of its shape."""
    activity = yoda.activity(process, attention, sampler.grid(process))
    fill = yoda.fill(process, anchor, activity, noise("region", len(anchor)))
    denoiser = Denoiser(Nothing(), process, Exact(), anchor, activity=activity)
    return sampler(denoiser, noise("sampler", len(anchor)), fill)


def vp() -> VP:
    return VP(Linear(1000, 1e-4, 2e-2))


# The clock of the mask.


@pytest.mark.parametrize(
    ("sampler", "process"),
    [
        (DDIM(20), vp()),
        (Ancestral(15), ResidualShift(15, 0.04)),
        (DoSMultistep(20, 1), DomainShift(ScaledLinear(1000, 0.00085, 0.012), shift_steps=500)),
        (DDIM(20), EDMProcess()),
        (RelayHeun(60), RelayProcess()),
        (DDIM(20), RectifiedFlow()),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("attention", [0.0, 0.25, 0.5, 0.8])
def test_a_pixel_diffuses_for_its_share_of_the_steps(sampler: Sampler, process: Process, attention: float) -> None:
    yoda, times = YODA(Constant(), lower_bound=0.1), sampler.grid(process)
    activity = yoda.activity(process, torch.full((1, 1, 1, 1), attention), times)
    active = sum(bool(activity.mask(t[None])) for t in times[:-1])
    steps = len(times) - 1
    assert abs(active - (attention + 0.1) * steps) <= 1.01


@pytest.mark.parametrize(
    "process",
    [vp(), ResidualShift(15, 0.04), DomainShift(Linear(100, 1e-3, 0.1), shift_steps=50), EDMProcess(), RelayProcess()],
    ids=lambda process: type(process).__name__,
)
def test_the_share_falls_from_one_to_zero_along_a_run(process: Process) -> None:
    share = process.run_share(process.grid(10))
    assert abs(float(share[0]) - 1) < 1e-9 and abs(float(share[-1])) < 1e-9
    assert all(later <= earlier for earlier, later in pairwise(share.tolist()))
    assert float(process.run_share(torch.ones(1))) == pytest.approx(1)  # training goes beyond a run's start


def test_times_that_training_draws_are_masked_as_sampling_masks_them() -> None:
    process, yoda = DomainShift(Linear(100, 1e-3, 0.1), shift_steps=50), YODA(Constant(), lower_bound=0.1)
    attention = torch.tensor([0.0, 0.4, 0.89, 0.9]).view(1, 1, 2, 2)
    times = torch.tensor([0.05, 0.25, 0.5, 1.0], dtype=torch.float64)
    masks = yoda.mask(attention.expand(4, -1, -1, -1), process.run_share(times)).flatten(1)
    assert masks.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]]


# The lower bound's promise.


@pytest.mark.parametrize(("steps", "lower_bound", "last"), [(1, 0.1, 1), (5, 0.1, 1), (20, 0.1, 2), (15, 0.3, 5)])
def test_a_whole_end_is_the_lower_bounds_share_of_the_steps(steps: int, lower_bound: float, last: int) -> None:
    process, times = vp(), DDIM(steps).grid(vp())
    for attention in (0.0, 0.03):
        kept = YODA(Constant(), lower_bound=lower_bound, whole_end=True)
        activity = kept.activity(process, torch.full((1, 1, 1, 1), attention), times)
        assert [bool(activity.mask(t[None])) for t in times[:-1]] == [False] * (steps - last) + [True] * last


def test_a_whole_end_changes_nothing_for_pixels_that_join_before() -> None:
    attention = torch.tensor([0.0, 0.05, 0.3, 0.95]).view(1, 1, 2, 2)
    times = DDIM(5).grid(vp())
    plain, whole = (
        YODA(Constant(), whole_end=end).activity(vp(), attention, times).joins.flatten() for end in (False, True)
    )
    torch.testing.assert_close(whole, torch.tensor([0.2, 0.2, 0.4, 1.05], dtype=torch.float64))
    torch.testing.assert_close(plain[2:], whole[2:])


@pytest.mark.parametrize(("whole_end", "share"), [(False, 0.5), (True, 0.0)])
def test_pixels_that_never_diffused_are_counted(whole_end: bool, share: float) -> None:
    yoda, process, sampler = YODA(Constant(), whole_end=whole_end), vp(), DDIM(5)
    attention = torch.tensor([0.0, 0.05, 0.3, 0.95]).view(1, 1, 2, 2)
    activity = yoda.activity(process, attention, sampler.grid(process))
    fill = yoda.fill(process, torch.zeros(1, 1, 2, 2), activity, noise("region", 1))
    assert fill.never_diffused.tolist() == [1]
    sampler(Denoiser(Nothing(), process, Exact(), torch.zeros(1, 1, 2, 2), activity=activity), torch.randn_like, fill)
    assert fill.never_diffused.tolist() == [share]


# Maps on tiles.


def test_tiles_take_the_mean_or_the_quantile() -> None:
    attention = torch.arange(30, dtype=torch.float64).view(1, 1, 5, 6)
    mean, quantile = (on_tiles(attention, 4, statistic)[0, 0] for statistic in ("mean", "quantile75"))
    for part in ((slice(0, 4), slice(0, 4)), (slice(0, 4), slice(4, 6)), (slice(4, 5), slice(4, 6))):
        values = attention[0, 0][part]
        assert mean[part].unique().tolist() == pytest.approx([values.mean().item()])
        assert quantile[part].unique().tolist() == pytest.approx([values.flatten().quantile(0.75).item()])


# Pixels that join under multistep samplers.

MULTISTEP: dict[str, Any] = {
    "dpm++": lambda: DPMSolverPlusPlus(20),
    "dpm++ sde": lambda: DPMSolverPlusPlus(20, stochastic=True),
    "dos 2": lambda: DoSMultistep(20, 2),
    "dos 3": lambda: DoSMultistep(20, 3),
    "dos 3 corrected": lambda: DoSMultistep(20, 3, third="corrected"),
}


def spread_of_a_run_that_begins(sampler: Sampler, process: Process, joins: float, anchor: Tensor) -> float:
    """Standard deviation of what the sampler makes of draws from the marginal at its first time up to `joins`."""
    denoiser, randn = Denoiser(Nothing(), process, Exact(), anchor), noise("sampler", len(anchor))
    times = [t.expand(len(anchor)) for t in sampler.grid(process) if float(t) <= joins + 1e-9]
    x = process.diffuse(x0=anchor, anchor=anchor, t=times[0], noise=randn(anchor))
    memory: tuple[Tensor, ...] = ()
    for t, s in pairwise(times):
        x, memory = sampler.step(denoiser, x, memory, t=t, s=s, randn=randn)
    return float(x.std())


@pytest.mark.parametrize("lr_noise", ["fresh", "fixed"])
@pytest.mark.parametrize("name", MULTISTEP)
@pytest.mark.parametrize("joins", [0.1, 0.3, 0.6])
def test_pixels_that_join_end_with_the_right_spread(name: str, joins: float, lr_noise: Any) -> None:
    """Anchors are drawn as clean pixels are, so that waiting pixels are draws from the marginals too."""
    anchor = MEAN + SPREAD * torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    yoda = YODA(Constant(), lower_bound=joins, lr_noise=lr_noise)
    end = run(MULTISTEP[name](), vp(), yoda, torch.zeros(8, 1, 64, 64), anchor)
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(end.std()) / spread_of_a_run_that_begins(MULTISTEP[name](), vp(), joins, anchor) == pytest.approx(
        1, abs=0.02
    )


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_pixel_that_joins_goes_on_as_a_run_that_begins_there(name: str) -> None:
    """Bit for bit what the sampler makes of the state at that time without a memory."""
    sampler, process, joins = MULTISTEP[name](), vp(), 0.3
    anchor = MEAN + SPREAD * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    attention = torch.zeros(2, 1, 8, 8)
    attention[..., ::2] = 1.0  # whose neighbours have diffused from the start
    yoda = YODA(Constant(), lower_bound=joins)
    activity = yoda.activity(process, attention, sampler.grid(process))
    fill, randn = yoda.fill(process, anchor, activity, noise("region", 2)), noise("sampler", 2)
    denoiser = Denoiser(Nothing(), process, Exact(), anchor, activity=activity)
    times = [t.expand(2) for t in sampler.grid(process)]

    x, memory = sampler.init(denoiser, times[0], randn)
    fresh: tuple[Tensor, tuple[Tensor, ...]] | None = None
    for t, s in pairwise(times):
        if fresh is None and float(t[0]) <= joins + 1e-9:
            fresh = x, ()
        if fresh is not None:
            again = sampler.step(denoiser, *fresh, t=t, s=s, randn=randn.fork())
            fresh = fill.fork()(again[0], t=t, s=s), again[1]
        x, memory = sampler.step(denoiser, x, memory, t=t, s=s, randn=randn)
        x = fill(x, t=t, s=s)
    assert fresh is not None
    torch.testing.assert_close(x[..., 1::2], fresh[0][..., 1::2], rtol=0, atol=1e-6)
    assert not torch.allclose(x[..., ::2], fresh[0][..., ::2], atol=1e-4)
