"""Samplers against diffusers' schedulers, against each other, and against an exactly solvable model."""

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from torch import Tensor

from lightning_modules.diffusion.dos_solvers import DoSMultistep
from lightning_modules.diffusion.edm import EDMProcess
from lightning_modules.diffusion.process import Process, Spacing, expand
from lightning_modules.diffusion.randomness import KeyedNoise, Randn
from lightning_modules.diffusion.relay import RelayProcess
from lightning_modules.diffusion.residual_shift import ResidualShift
from lightning_modules.diffusion.samplers import DDIM, Ancestral, DPMSolverPlusPlus, Heun, Sampler
from lightning_modules.diffusion.schedules import Cosine, Harmonic, Linear
from lightning_modules.diffusion.vp import VP
from tests.fakes import FakeDenoiser

STEPS = 200
SCHEDULE = Linear(STEPS, 1e-4, 0.04)


Predict = Callable[[Tensor, Tensor], Tensor]


def timed(x_t: Tensor, index: Tensor) -> Tensor:
    """A smooth stand-in for a network that is told the step."""
    return untimed(x_t, index) + 0.1 * torch.sin(index / STEPS * 6).view(-1, 1, 1, 1).to(x_t)


def untimed(x_t: Tensor, index: Tensor) -> Tensor:
    """One that is not: between two entries diffusers rounds the step that it tells."""
    return 0.8 * torch.tanh(1.5 * x_t)


def denoiser_of(process: VP, anchor: Tensor, predict: Predict, clip: bool = False) -> FakeDenoiser:
    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        noise = predict(x_t, t * process.steps - 1)
        x0 = (x_t - expand(process.std(t), x_t) * noise) / expand(process.alpha(t), x_t)
        return x0.clamp(-1, 1) if clip else x0

    return FakeDenoiser(process, anchor, denoise)


def injected(draws: list[Tensor]) -> Randn:
    remaining = iter(draws)
    return lambda like: next(remaining)


def draws(steps: int) -> list[Tensor]:
    return list(torch.randn(steps + 1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(7)))


def run_scheduler(scheduler: Any, predict: Predict, noises: list[Tensor], **step: Any) -> Tensor:
    """diffusers' loop, as its pipelines write it."""
    # Heun's scheduler keeps x / alpha; there, unit variance is sqrt(sigma^2 + 1), which its pipelines round to sigma.
    x = noises[0] * (scheduler.sigmas[0] ** 2 + 1) ** 0.5 if scheduler.init_noise_sigma != 1 else noises[0]
    for time in scheduler.timesteps:
        output = predict(scheduler.scale_model_input(x, time), time.float().expand(len(x)))
        x = scheduler.step(output, time, x, **step).prev_sample
    return x


TABLE: dict[str, Any] = {"num_train_timesteps": STEPS, "trained_betas": SCHEDULE.betas().numpy()}
TRAILING: dict[str, Any] = {**TABLE, "timestep_spacing": "trailing"}
UNIFORM: dict[str, Any] = {**TABLE, "timestep_spacing": "linspace"}
SOLVER: dict[str, Any] = {"final_sigmas_type": "zero"}


@pytest.mark.parametrize(
    ("sampler", "scheduler", "predict", "eta"),
    [
        (Ancestral(20), DDPMScheduler(**TRAILING), timed, None),
        (Ancestral(STEPS), DDPMScheduler(**TRAILING), timed, None),
        (Ancestral(8, spacing="uniform"), DDPMScheduler(**UNIFORM), timed, None),
        (Ancestral(STEPS, variance="large"), DDPMScheduler(**TRAILING, variance_type="fixed_large"), timed, None),
        (DDIM(20), DDIMScheduler(**TRAILING), timed, 0.0),
        (DDIM(20, eta=1.0), DDIMScheduler(**TRAILING), timed, 1.0),
        (DDIM(50, eta=0.3), DDIMScheduler(**TRAILING), timed, 0.3),
        (DPMSolverPlusPlus(20), DPMSolverMultistepScheduler(**TRAILING, **SOLVER), timed, None),
        (
            DPMSolverPlusPlus(20, stochastic=True),
            DPMSolverMultistepScheduler(**TRAILING, **SOLVER, algorithm_type="sde-dpmsolver++"),
            timed,
            None,
        ),
        (
            DPMSolverPlusPlus(12, spacing="karras"),
            DPMSolverMultistepScheduler(**TRAILING, **SOLVER, use_karras_sigmas=True),
            untimed,
            None,
        ),
        (Heun(STEPS, spacing="trailing"), HeunDiscreteScheduler(**TRAILING), timed, None),
        (Heun(12, spacing="karras"), HeunDiscreteScheduler(**UNIFORM, use_karras_sigmas=True), untimed, None),
    ],
    ids=lambda value: value.name(VP(SCHEDULE)) if isinstance(value, Sampler) else "",
)
def test_runs_equal_diffusers(
    sampler: Sampler, scheduler: Any, predict: Predict, eta: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises = draws(sampler.steps)
    remaining = iter(noises[1:])
    monkeypatch.setattr(
        inspect.getmodule(type(scheduler)), "randn_tensor", lambda *_, **__: next(remaining), raising=False
    )
    scheduler.set_timesteps(sampler.steps)
    clip = bool(scheduler.config.get("clip_sample"))
    step = {} if eta is None else {"eta": eta, "use_clipped_model_output": True}
    expected = run_scheduler(scheduler, predict, noises, **step)
    actual = sampler(denoiser_of(VP(SCHEDULE), noises[0], predict, clip), injected(noises))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def gaussian_denoiser(process: Process, anchor: Tensor, mean: float = 0.3, std: float = 0.2) -> FakeDenoiser:
    """The exact posterior mean where every pixel of the clean image is drawn from N(mean, std^2)."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, noise = expand(process.alpha(t), x_t), expand(process.std(t), x_t)
        expected = process.mean(x0=torch.full_like(x_t, mean), anchor=anchor, t=t)
        return mean + alpha * std**2 / ((alpha * std) ** 2 + noise**2) * (x_t - expected)

    return FakeDenoiser(process, anchor, denoise)


def transported(process: Process, x_t: Tensor, anchor: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Where the probability flow of `gaussian_denoiser`'s model takes a state: it keeps its quantile."""
    centre_t, centre_s = (
        process.mean(x0=torch.full_like(x_t, 0.3), anchor=anchor, t=time.expand(len(x_t))) for time in (t, s)
    )
    spread_t, spread_s = (((process.alpha(time) * 0.2) ** 2 + process.std(time) ** 2).sqrt() for time in (t, s))
    return centre_s + spread_s / spread_t * (x_t - centre_t)


def error(sampler: Sampler, process: Process) -> float:
    """Largest distance from the exact solution at the last time before the clean image, denoised."""
    anchor = torch.full((4, 1, 8, 8), -0.5, dtype=torch.float64)
    first, last = sampler.grid(process)[:1], sampler.grid(process)[-2:-1]
    torch.manual_seed(0)
    x = process.start(anchor=anchor, t=first.expand(4), noise=process.noise(anchor))
    denoise = gaussian_denoiser(process, anchor)
    exact = denoise(transported(process, x, anchor, first, last), last.expand(4))
    torch.manual_seed(0)
    return float((sampler(denoise) - exact).abs().max())


PROCESSES = [VP(Linear(1000, 1e-4, 2e-2)), VP(Cosine(1000)), ResidualShift(1000, 0.02, power=1.0), EDMProcess()]
NAMES = ["linear", "cosine", "resshift", "edm"]


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
@pytest.mark.parametrize(
    ("solver", "ratio"), [(DDIM, 2.0), (DPMSolverPlusPlus, 4.0), (Heun, 4.0)], ids=["ddim", "dpm++2m", "heun"]
)
def test_halving_the_step_divides_the_error_by_two_to_the_order(
    solver: type[Sampler], ratio: float, process: Process
) -> None:
    spacing: Spacing = "trailing" if process.steps is None else "karras"
    coarse, fine = (error(solver(steps, spacing=spacing), process) for steps in (80, 160))
    assert coarse / fine == pytest.approx(ratio, rel=0.15)


def samples(sampler: Sampler, process: Process) -> Tensor:
    torch.manual_seed(1)
    anchor = torch.full((8, 4, 32, 32), -0.5)
    return sampler(gaussian_denoiser(process, anchor))


@pytest.mark.parametrize("process", PROCESSES[:3], ids=NAMES[:3])
@pytest.mark.parametrize(
    "sampler",
    [
        Ancestral(500),
        Ancestral(500, variance="large"),
        DDIM(500),
        DDIM(500, eta=0.5),
        DPMSolverPlusPlus(100, spacing="karras"),
        DPMSolverPlusPlus(100, stochastic=True, spacing="karras"),
        Heun(100, spacing="karras"),
        DoSMultistep(100, order=2, spacing="karras"),
        DoSMultistep(100, order=3, spacing="karras"),
    ],
    ids=lambda sampler: sampler.name(VP(SCHEDULE)),
)
def test_samples_have_the_distribution_of_the_data(sampler: Sampler, process: Process) -> None:
    drawn = samples(sampler, process)
    assert drawn.mean() == pytest.approx(0.3, abs=0.02)
    assert drawn.std() == pytest.approx(0.2, rel=0.05)


def test_ddim_with_eta_1_is_ancestral() -> None:
    torch.testing.assert_close(samples(DDIM(20, eta=1.0), PROCESSES[0]), samples(Ancestral(20), PROCESSES[0]))


def test_the_deterministic_samplers_draw_noise_once() -> None:
    for sampler in (DDIM(5), DPMSolverPlusPlus(5), Heun(5)):
        sampler(denoiser_of(VP(SCHEDULE), draws(0)[0], timed), injected(draws(0)))


@pytest.mark.parametrize("solver", [Ancestral, DDIM, DPMSolverPlusPlus, Heun])
def test_one_step_returns_the_first_estimate(solver: type[Sampler]) -> None:
    anchor = torch.zeros(2, 3, 4, 4)
    for process in PROCESSES:
        quarter = FakeDenoiser(process, anchor, lambda x_t, t: torch.full_like(x_t, 0.25))
        drawn = solver(1, spacing="trailing")(quarter)
        torch.testing.assert_close(drawn, torch.full_like(anchor, 0.25))


@pytest.mark.parametrize("solver", [Ancestral, DDIM, DPMSolverPlusPlus, Heun])
def test_what_after_step_returns_goes_on(solver: type[Sampler]) -> None:
    seen, times = [], []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append((x_t, t))
        return torch.zeros_like(x_t)

    def after_step(x_s: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
        times.append((float(t[0]), float(s[0])))
        return torch.full_like(x_s, float(s[0]))

    recorder = FakeDenoiser(VP(SCHEDULE), torch.ones(2, 3, 4, 4), denoise)
    drawn = solver(4, spacing="trailing")(recorder, after_step=after_step)
    assert not drawn.any()
    assert times == list(pairwise([1, 0.75, 0.5, 0.25, 0]))
    begun = {float(t[0]): x_t for x_t, t in seen}  # of Heun's two evaluations at a time, the second begins a step
    assert all((begun[t] == t).all() for t in (0.75, 0.5, 0.25))


@pytest.mark.parametrize(
    "sampler",
    [
        Ancestral(6),
        DDIM(6),
        Heun(6),
        DPMSolverPlusPlus(6),
        DPMSolverPlusPlus(6, stochastic=True),
        DoSMultistep(6, order=2),
        DoSMultistep(6, order=3),
    ],
    ids=lambda sampler: sampler.name(VP(SCHEDULE)),
)
def test_a_step_is_a_function_of_what_it_is_given(sampler: Sampler) -> None:
    """All that is remembered is the memory: steps can be repeated, and runs of one sampler interleaved."""
    process, anchor = VP(SCHEDULE), torch.zeros(2, 3, 4, 4)
    denoiser, other = (denoiser_of(process, anchor, predict) for predict in (timed, untimed))
    times = [time.expand(2) for time in sampler.grid(process)[:-1]]
    (x, memory), (x_other, memory_other) = (sampler.init(each, times[0], randn(0)) for each in (denoiser, other))
    assert memory == ()
    for k, (t, s) in enumerate(pairwise(times)):
        kept = [value.clone() for value in memory]
        stepped, following = sampler.step(denoiser, x, memory, t=t, s=s, randn=randn(k))
        x_other, memory_other = sampler.step(other, x_other, memory_other, t=t, s=s, randn=randn(k))
        again, following_again = sampler.step(denoiser, x, memory, t=t, s=s, randn=randn(k))
        assert torch.equal(stepped, again)
        assert len(following) == len(following_again)
        assert all(map(torch.equal, following, following_again))
        assert all(map(torch.equal, memory, kept))  # nor was it written to
        x, memory = stepped, following
    assert not torch.equal(x, x_other)


def randn(seed: int) -> Randn:
    return KeyedNoise(torch.Generator().manual_seed(seed) for _ in range(2))


def test_a_start_without_signal_is_refused_by_heun_and_taken_by_the_others() -> None:
    process = VP(Harmonic(50))
    with pytest.raises(ValueError, match=r"infinite at the start of VP; choose DDIM"):
        Heun(10, spacing="trailing")(denoiser_of(process, torch.zeros(1, 3, 4, 4), untimed))
    with pytest.raises(ValueError, match="VP starts without; choose trailing"):
        DDIM(10, spacing="karras").grid(process)
    for sampler in (Ancestral(10), DDIM(10), DPMSolverPlusPlus(10)):
        anchor = torch.zeros(2, 3, 4, 4)
        assert sampler(gaussian_denoiser(process, anchor)).isfinite().all()


@pytest.mark.parametrize(
    "sampler", [DPMSolverPlusPlus(5), Heun(5, spacing="trailing")], ids=lambda sampler: sampler.solver
)
def test_a_mean_that_is_no_multiple_of_the_image_is_refused(sampler: Sampler) -> None:
    with pytest.raises(TypeError, match=r"the mean of RelayProcess is not a multiple of x0.*DPMSolverPlusPlus, Heun"):
        sampler.grid(RelayProcess())


@pytest.mark.parametrize(
    ("sampler", "asking"),
    [
        (Ancestral(5, variance="large"), "variance: large"),
        (DPMSolverPlusPlus(5, stochastic=True), "DPMSolverPlusPlus with stochastic: true"),
    ],
)
def test_a_process_without_a_posterior_is_refused_by_what_relies_on_one(sampler: Sampler, asking: str) -> None:
    with pytest.raises(TypeError, match=f"{asking} needs a process with a Markov posterior.* not EDMProcess"):
        sampler.grid(EDMProcess())
    for process in PROCESSES[:3]:
        sampler.grid(process)


@pytest.mark.parametrize("steps", [0, STEPS + 1])
def test_more_steps_than_the_process_has_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"defined with {STEPS} steps; it cannot be sampled with {steps}"):
        Ancestral(steps).grid(VP(SCHEDULE))


def test_names_tell_solver_steps_and_spacing() -> None:
    process = VP(SCHEDULE)
    assert Ancestral(100).name(process) == "ancestral-100"
    assert DDIM(10, spacing="quadratic").name(process) == "ddim-10-quadratic"
    assert DPMSolverPlusPlus(10, stochastic=True).name(process) == "dpmpp2msde-10"
    assert Heun(18, spacing="karras").name(process) == "heun-18-karras"


def test_names_tell_an_unusual_share_of_noise() -> None:
    assert DDIM(10, eta=1.0).name(VP(SCHEDULE)) == "ddim-10-eta1"
    assert Ancestral(10, eta=0.2, spacing="uniform").name(VP(SCHEDULE)) == "ancestral-10-uniform-eta0.2"
    assert Ancestral(10, variance="large").name(VP(SCHEDULE)) == "ancestral-10-large"


@pytest.mark.parametrize("eta", [-0.1, 1.5])
@pytest.mark.parametrize("solver", [Ancestral, DDIM, Heun])
def test_a_share_of_noise_beyond_all_of_it_is_refused(solver: Callable[..., Sampler], eta: float) -> None:
    with pytest.raises(ValueError, match=rf"eta: {eta} is outside \[0, 1\]"):
        solver(5, eta=eta)


def test_samples_at_different_times_step_as_they_do_alone() -> None:
    """One of them arrives at the clean state, where no slope is left to correct with."""
    process = VP(Linear(STEPS, 1e-4, 0.02))
    x, anchor = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser = gaussian_denoiser(process, anchor)
    t, s = torch.tensor([0.6, 0.1], dtype=torch.float64), torch.tensor([0.3, 0.0], dtype=torch.float64)
    together, _ = Heun(4).step(denoiser, x, (), t=t, s=s, randn=torch.randn_like)
    for i in (0, 1):
        part = gaussian_denoiser(process, anchor[i : i + 1])
        alone, _ = Heun(4).step(part, x[i : i + 1], (), t=t[i : i + 1], s=s[i : i + 1], randn=torch.randn_like)
        torch.testing.assert_close(together[i : i + 1], alone)
