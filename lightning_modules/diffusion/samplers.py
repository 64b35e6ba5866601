"""Loops over time. They know a denoiser and a process, and no network."""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Process, expand
from lightning_modules.diffusion.spacing import Spacing, noise_to_signal, spaced


class Denoise(Protocol):
    """An estimate of the clean state."""

    def __call__(self, x_t: Tensor, t: Tensor, rows: Tensor | None = None, /) -> Tensor:
        """`[b,C,H,W]` of a state `[b,C,H,W]` at times `[b]`; `rows` tells which samples of the batch they are."""


class Step(Protocol):
    """One step of a run; may remember the steps before it."""

    def __call__(self, x_t: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
        """The state at `s`, `[B,C,H,W]`; `t` and `s` are `[B]`."""


class AfterStep(Protocol):
    """Called with the new state after each step from `t` to `s`; what it returns is the state that goes on."""

    def __call__(self, x_s: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
        """New state, `[B,C,H,W]`; `t` and `s` are `[B]`."""


class Sampler(ABC):
    """Draws a clean state, step by step.

    Args:
        steps: Number of steps from the start to the clean state; fewer than the process was trained with respaces it.
        spacing: Where the steps lie in time, see `spaced`.
        eta: Share of the fresh noise that each step adds, 0 to 1, see `Process.step`.

    Raises:
        ValueError: `eta` is outside [0, 1].
    """

    usual_eta = 0.0  # the one that `name` leaves unsaid

    def __init__(self, steps: int, spacing: Spacing = "trailing", eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta: {eta} is outside [0, 1]; 0 adds no noise, 1 replaces all that the process can")
        self.steps, self.eta = steps, eta
        self.spacing: Spacing = spacing

    @property
    def name(self) -> str:
        """What results say of it, "ddim-10" or "ddim-10-karras-eta0.5"."""
        spacing = "" if self.spacing == "trailing" else f"-{self.spacing}"
        return f"{self.solver}-{self.steps}{spacing}{self.said_eta}"

    @property
    def said_eta(self) -> str:
        """The part of `name` that tells an unusual `eta`."""
        return "" if self.eta == self.usual_eta else f"-eta{self.eta:g}"

    @property
    def solver(self) -> str:
        """The first part of `name`."""
        return type(self).__name__.lower()

    def grid(self, process: Process) -> Tensor:
        """The times of a run, float64 `[steps + 1]`, falling to 0.

        Raises:
            ValueError: the process has no such steps.
            TypeError: sampler or spacing rely on what the process is not.
        """
        return spaced(process, self.steps, self.spacing)

    @abstractmethod
    def stepper(self, denoise: Denoise, process: Process, anchor: Tensor) -> Step:
        """What one run does at each of its steps."""

    def __call__(
        self, denoise: Denoise, process: Process, anchor: Tensor, after_step: AfterStep | None = None
    ) -> Tensor:
        """A clean state, `[B,C,H,W]`, in the shape of `anchor`."""
        return self.follow(self.grid(process), denoise, process, anchor, after_step)

    def follow(
        self, times: Tensor, denoise: Denoise, process: Process, anchor: Tensor, after_step: AfterStep | None
    ) -> Tensor:
        """The state at the last of falling `times`, `[B,C,H,W]`, from the process's start at the first."""
        batch = [time.expand(anchor.shape[0]) for time in times.to(anchor.device)]
        x = process.start(anchor=anchor, t=batch[0], noise=process.noise(anchor))
        step = self.stepper(denoise, process, anchor)
        for t, s in pairwise(batch):
            x = step(x, t=t, s=s)
            if after_step is not None:
                x = after_step(x, t=t, s=s)
        return x


class Ancestral(Sampler):
    """Stochastic steps through the process's posterior (Algorithm 2 of DDPM, arXiv:2006.11239).

    Args:
        steps: See `Sampler`.
        eta: Share of the posterior's noise, 0 to 1.
        spacing: See `Sampler`.
    """

    usual_eta = 1.0

    def __init__(self, steps: int, eta: float = 1.0, spacing: Spacing = "trailing") -> None:
        super().__init__(steps, spacing, eta)

    def stepper(self, denoise: Denoise, process: Process, anchor: Tensor) -> Step:
        """`Process.step` with one estimate of the clean state."""

        def step(x_t: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
            return process.step(x_t, x0=denoise(x_t, t), anchor=anchor, t=t, s=s, eta=self.eta)

        return step


class DDIM(Ancestral):
    """Deterministic steps (arXiv:2010.02502); the same loop with `eta` 0.

    Args:
        steps: See `Sampler`.
        eta: 0 for DDIM; 1 is `Ancestral`.
        spacing: See `Sampler`.
    """

    usual_eta = 0.0

    def __init__(self, steps: int, eta: float = 0.0, spacing: Spacing = "trailing") -> None:
        super().__init__(steps, eta, spacing)


class DPMSolverPlusPlus(Sampler):
    """DPM-Solver++(2M), of second order in the half log-SNR (Algorithm 2 of arXiv:2211.01095), or its SDE counterpart.

    Its update is the first-order step, DDIM's or the posterior's, towards a clean state that is extrapolated from the
    last two estimates. So it holds for every process whose mean is a multiple of x0 plus a term in the anchor: that
    term is known and drops out. The first step and the one to the clean state, where the half log-SNR is infinite, are
    of first order.

    Args:
        steps: See `Sampler`.
        stochastic: The SDE solver instead of the ODE solver.
        spacing: See `Sampler`.
    """

    def __init__(self, steps: int, stochastic: bool = False, spacing: Spacing = "trailing") -> None:
        super().__init__(steps, spacing)
        self.stochastic = stochastic

    @property
    def solver(self) -> str:
        """See `Sampler.solver`."""
        return "dpmpp2msde" if self.stochastic else "dpmpp2m"

    def grid(self, process: Process) -> Tensor:
        """See `Sampler.grid`; a process whose mean applies an operator to x0 is refused."""
        noise_to_signal(process, torch.ones(1))  # refused whatever the spacing
        times = super().grid(process)
        if self.stochastic:
            needs_posterior(process, times)
        return times

    def stepper(self, denoise: Denoise, process: Process, anchor: Tensor) -> Step:
        """Extrapolates the estimate to the middle of the step, then steps there."""
        before: tuple[Tensor, Tensor] | None = None

        def step(x_t: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
            nonlocal before
            estimate, now = denoise(x_t, t), _half_log_snr(process, t)
            x0 = estimate
            if before is not None:
                share = _extrapolation(before[1], now, _half_log_snr(process, s))
                x0 = estimate + expand(share, estimate) * (estimate - before[0])
            before = estimate, now
            return process.step(x_t, x0=x0, anchor=anchor, t=t, s=s, eta=float(self.stochastic))

        return step


def needs_posterior(process: Process, times: Tensor) -> None:
    """Refuses a process whose steps add more noise than the equation has that second-order samplers solve.

    Raises:
        ValueError: the noise is not that of the process's posterior.
    """
    t, s = times[:-1], times[1:]
    if not torch.equal(process.added_std(t, s), process.fresh_std(t, s)):
        raise ValueError(
            f"stochastic steps of second order add the posterior's noise, {type(process).__name__} is set to add more, "
            "for Ancestral: set --model.init_args.process.init_args.posterior_variance small"
        )


def _half_log_snr(process: Process, t: Tensor) -> Tensor:
    return -noise_to_signal(process, t).log()


def _extrapolation(before: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """How far half a step ahead is, in steps taken before, `[B]`; 0 where the step ends in the clean state."""
    share = (then - now) / (now - before) / 2
    return torch.where(then.isfinite() & (now > before), share, 0.0)


class Heun(Sampler):
    """Heun's second-order steps in the noise-to-signal ratio (Algorithm 1 of EDM, arXiv:2206.00364).

    Evaluates the denoiser twice at each step but the last: 2 `steps` - 1 times in all. Churn, and what Relay Diffusion
    does differently, are in `edm_samplers.py`.

    Args:
        steps: See `Sampler`.
        eta: Share of the posterior's noise, drawn anew for each of the two evaluations.
        spacing: See `Sampler`. Where a table ends in almost pure noise, `trailing` would leave most of the way in the
            ratio to one step, which no second-order step bridges.
    """

    def __init__(self, steps: int, eta: float = 0.0, spacing: Spacing = "karras") -> None:
        super().__init__(steps, spacing, eta)

    def grid(self, process: Process) -> Tensor:
        """See `Sampler.grid`; also refuses a process that starts without signal, where the ratio is infinite."""
        self.ratio(process, torch.ones(1))  # refused whatever the spacing
        times = super().grid(process)
        if self.eta > 0:
            needs_posterior(process, times)
        if self.ratio(process, times).isinf().any():
            raise ValueError(
                f"Heun steps in the noise-to-signal ratio, which is infinite at the start of {type(process).__name__}; "
                "choose DDIM or DPMSolverPlusPlus"
            )
        return times

    def ratio(self, process: Process, t: Tensor) -> Tensor:
        """What the steps are taken in, `[B]`."""
        return noise_to_signal(process, t)

    def slope(self, process: Process, x: Tensor, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """Change of the state, over its signal level, with `ratio`: the noise that `x0` leaves in `x`, `[B,C,H,W]`."""
        std = process.std(t)
        return (x - process.mean(x0=x0, anchor=anchor, t=t)) / expand(torch.where(std > 0, std, 1.0), x)

    def stepper(self, denoise: Denoise, process: Process, anchor: Tensor) -> Step:
        """An Euler step, then the same step with the mean of the slopes found at both its ends."""

        def step(x_t: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
            x0 = denoise(x_t, t)
            x_s = process.step(x_t, x0=x0, anchor=anchor, t=t, s=s, eta=self.eta)
            if not (s > 0).any():
                return x_s
            there = self.slope(process, x_s, x0=denoise(x_s, s), anchor=anchor, t=s)
            change = there - self.slope(process, x_t, x0=x0, anchor=anchor, t=t)
            # The clean state that leaves the mean slope at x_t.
            x0 = x0 - expand(self.ratio(process, t) / 2, x_t) * change
            corrected = process.step(x_t, x0=x0, anchor=anchor, t=t, s=s, eta=self.eta)
            return torch.where(expand(s > 0, x_t) > 0, corrected, x_s)

        return step
