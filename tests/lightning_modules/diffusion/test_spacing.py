"""Spacings of few steps over a process's table."""

import pytest
import torch
from diffusers import DDIMScheduler

from lightning_modules.diffusion.edm import EDMProcess
from lightning_modules.diffusion.process import Spacing, noise_to_signal
from lightning_modules.diffusion.residual_shift import ResidualShift
from lightning_modules.diffusion.schedules import Linear
from lightning_modules.diffusion.spacing import spaced
from lightning_modules.diffusion.vp import VP

T = 1000
PROCESS = VP(Linear(T, 1e-4, 2e-2))
SPACINGS: tuple[Spacing, ...] = ("trailing", "uniform", "quadratic", "karras")


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 999, T])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_times_fall_strictly_from_the_start_to_0(spacing: Spacing, steps: int) -> None:
    times = spaced(PROCESS, steps, spacing)
    assert times.dtype == torch.float64
    assert len(times) == steps + 1
    assert times[0] == 1 and times[-1] == 0
    assert (times.diff() < 0).all()


@pytest.mark.parametrize("steps", [1, 3, 100, 999, T])
@pytest.mark.parametrize("spacing", ["trailing", "uniform", "quadratic"])
def test_times_are_entries_of_the_table(spacing: Spacing, steps: int) -> None:
    entries = spaced(PROCESS, steps, spacing) * T
    torch.testing.assert_close(entries, entries.round(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("spacing", ["trailing", "uniform", "quadratic"])
def test_all_steps_are_the_whole_table(spacing: Spacing) -> None:
    torch.testing.assert_close(spaced(PROCESS, T, spacing), torch.arange(T, -1, -1) / torch.tensor(float(T)).double())


@pytest.mark.parametrize(("spacing", "name"), [("trailing", "trailing"), ("uniform", "linspace")])
@pytest.mark.parametrize("steps", [2, 8, 100])
def test_entries_are_those_of_diffusers(spacing: Spacing, name: str, steps: int) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=T, timestep_spacing=name)
    scheduler.set_timesteps(steps)
    entries = (spaced(PROCESS, steps, spacing)[:-1] * T).round().long()
    assert (entries - 1).tolist() == scheduler.timesteps.tolist()


def test_quadratic_visits_grow_with_the_square_of_time() -> None:
    torch.testing.assert_close(
        spaced(PROCESS, 10, "quadratic"), (torch.arange(10, -1, -1).double() / 10) ** 2, atol=0.5 / T, rtol=0
    )


@pytest.mark.parametrize("process", [PROCESS, ResidualShift(15, 0.04)], ids=["vp", "resshift"])
def test_karras_noise_is_even_in_its_seventh_root(process: VP | ResidualShift) -> None:
    sigma = noise_to_signal(process, spaced(process, 9, "karras")[:-1])
    roots = sigma.pow(1 / 7).diff()
    torch.testing.assert_close(roots, roots.mean().expand(8), atol=0, rtol=1e-6)
    ends = noise_to_signal(process, torch.tensor([1, 1 / process.steps], dtype=torch.float64))
    torch.testing.assert_close(sigma[[0, -1]], ends, atol=0, rtol=1e-6)


def test_edm_spaces_its_times_as_karras_did() -> None:
    assert torch.equal(spaced(EDMProcess(), 5, "karras"), EDMProcess().grid(5))
    sigma = noise_to_signal(EDMProcess(), spaced(EDMProcess(), 5, "karras")[:-1])
    roots = sigma.pow(1 / 7).diff()
    torch.testing.assert_close(roots, roots.mean().expand(4), atol=0, rtol=1e-6)


@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
def test_a_process_that_spaces_its_own_times_is_left_to_it(spacing: Spacing) -> None:
    with pytest.raises(TypeError, match="EDMProcess has none and spaces its times itself: leave spacing at trailing"):
        spaced(EDMProcess(), 5, spacing)
    assert torch.equal(spaced(EDMProcess(), 5, "trailing"), EDMProcess().grid(5))
