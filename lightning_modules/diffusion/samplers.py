"""Samplers: loops over time that call a denoiser and never the network itself."""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.process import Process, Spacing, expand, noise_to_signal
from lightning_modules.diffusion.randomness import Randn
from lightning_modules.diffusion.spacing import spaced

Memory = tuple[Tensor, ...]
"""Tensors `[B,...]` that a multistep sampler carries from step to step; the empty tuple before the first step."""


class AfterStep(Protocol):
    """Called after each step from `t` to `s`; sampling continues from the state that it returns."""

    def __call__(self, x_s: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
        """The state to continue from, `[B,C,H,W]`; `t` and `s` are `[B]`."""

    def fork(self) -> Self:
        """A copy that will draw the same random numbers from here on, for another run of the same steps."""


class Sampler(ABC):
    """Draws a clean state, step by step.

    Args:
        steps: Number of steps from the start to the clean state; may be smaller than in training.
        spacing: How the times of the steps are spaced, see `spaced`.
        eta: Share of the fresh noise that each step adds, 0 to 1, see `Process.step`.

    Raises:
        ValueError: `eta` is outside [0, 1].
    """

    default_eta = 0.0  # the value of `eta` that `name` does not mention

    def __init__(self, steps: int, spacing: Spacing = "trailing", eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta: {eta} is outside [0, 1]; 0 adds no noise, 1 replaces all that the process can")
        self.steps, self.eta = steps, eta
        self.spacing: Spacing = spacing

    def name(self, process: Process) -> str:
        """Name of the sampler in results, such as "ddim-10" or "ddim-10-karras-eta0.5"."""
        spacing = "" if self.spacing == "trailing" else f"-{self.spacing}"
        return f"{self.solver}-{self.steps}{spacing}{self.eta_suffix}"

    @property
    def eta_suffix(self) -> str:
        """The part of `name` for an `eta` other than the default."""
        return "" if self.eta == self.default_eta else f"-eta{self.eta:g}"

    @property
    def solver(self) -> str:
        """The first part of `name`, such as "ddim"."""
        return type(self).__name__.lower()

    @property
    def adds_noise(self) -> bool:
        """Whether steps draw fresh noise; otherwise the start of a run determines its result."""
        return self.eta > 0

    def grid(self, process: Process) -> Tensor:
        """The times of a run, float64 `[steps + 1]`, falling to 0.

        Raises:
            ValueError: the process cannot be sampled in this number of steps.
            TypeError: sampler or spacing need a property that the process does not have.
        """
        return spaced(process, self.steps, self.spacing)

    def init(self, denoiser: Denoiser, t: Tensor, randn: Randn) -> tuple[Tensor, Memory]:
        """The state that sampling starts from at times `t [B]`, `[B,C,H,W]`, and the memory before the first step."""
        return start(denoiser, denoiser.anchor, t, randn), ()

    @abstractmethod
    def step(
        self, denoiser: Denoiser, x_t: Tensor, memory: Memory, *, t: Tensor, s: Tensor, randn: Randn
    ) -> tuple[Tensor, Memory]:
        """One step.

        Args:
            denoiser: Gives the estimate of the clean state.
            x_t: State at `t`, `[B,C,H,W]`.
            memory: The memory that `init` or the previous step returned.
            t: Current time, `[B]`.
            s: Next time, `[B]`.
            randn: Source of fresh noise.

        Returns:
            The state at `s` and the next memory.
        """

    def __call__(
        self, denoiser: Denoiser, randn: Randn = torch.randn_like, after_step: AfterStep | None = None
    ) -> Tensor:
        """A clean state, `[B,C,H,W]`, in the shape of the denoiser's anchor."""
        return self.follow(self.grid(denoiser.process), denoiser, randn, after_step)

    def follow(self, times: Tensor, denoiser: Denoiser, randn: Randn, after_step: AfterStep | None) -> Tensor:
        """Samples along `times`, `[steps + 1]` and falling; returns the state at the last one, `[B,C,H,W]`."""
        batch = [time.expand(denoiser.anchor.shape[0]) for time in times]
        x, memory = self.init(denoiser, batch[0], randn)

        for t, s in pairwise(batch):
            x, memory = self.step(denoiser, x, memory, t=t, s=s, randn=randn)
            if after_step is not None:
                x = after_step(x, t=t, s=s)
        return x


def start(denoiser: Denoiser, anchor: Tensor, t: Tensor, randn: Randn) -> Tensor:
    """The process's start at times `t [B]` from `anchor`, in the anchor's precision, `[B,C,H,W]`."""
    process = denoiser.process
    return process.start(anchor=anchor, t=t, noise=process.noise(anchor, randn))


class Ancestral(Sampler):
    """Stochastic steps through the process's posterior (Algorithm 2 of DDPM, arXiv:2006.11239).

    Args:
        steps: See `Sampler`.
        eta: Share of the posterior's noise, 0 to 1.
        spacing: See `Sampler`.
        variance: Variance of the noise that a step adds at `eta = 1`: `small` for that of the posterior, `large` for
            that of the forward transition, DDPM's beta_t (used in SR3's paper). The step to the clean image adds no
            noise.

    Raises:
        ValueError: see `Sampler`.
    """

    default_eta = 1.0

    def __init__(
        self,
        steps: int,
        eta: float = 1.0,
        spacing: Spacing = "trailing",
        variance: Literal["small", "large"] = "small",
    ) -> None:
        super().__init__(steps, spacing, eta)
        self.variance = variance

    def name(self, process: Process) -> str:
        """See `Sampler.name`; followed by "-large" for the large variance."""
        return super().name(process) + ("-large" if self.variance == "large" else "")

    def grid(self, process: Process) -> Tensor:
        """See `Sampler.grid`; a large variance is that of a Markov chain's transition."""
        if self.variance == "large":
            needs_posterior(process, "variance: large")
        return super().grid(process)

    def step(
        self, denoiser: Denoiser, x_t: Tensor, memory: Memory, *, t: Tensor, s: Tensor, randn: Randn
    ) -> tuple[Tensor, Memory]:
        """`Process.step` with one estimate of the clean state."""
        process = denoiser.process
        added = transition_std(process, t, s) if self.variance == "large" else None

        x_s = process.step(
            x_t,
            x0=denoiser(x_t, t),
            anchor=denoiser.anchor,
            t=t,
            s=s,
            eta=self.eta,
            randn=randn,
            added_std=added,
        )
        return x_s, ()


def needs_posterior(process: Process, asking: str) -> None:
    """Refuses a process whose stochastic steps are not those of a Markov chain's posterior.

    Raises:
        TypeError: `process.markov` is False.
    """
    if not process.markov:
        raise TypeError(
            f"{asking} needs a process with a Markov posterior, such as VP or ResidualShift, and not "
            f"{type(process).__name__}, whose stochastic steps replace all noise; choose EDMHeun, Ancestral or DDIM"
        )


def transition_std(process: Process, t: Tensor, s: Tensor) -> Tensor:
    """Standard deviation of the noise that the forward transition from `s` to `t` adds, `[B]`; 0 where `s` is 0.

    The posterior's standard deviation is `std(s) / std(t)` times this one (Eq. 7 of DDPM).
    """
    _, fresh = process.kept_and_fresh(t, s)
    std_s = process.std(s)
    return torch.where(s > 0, fresh * process.std(t) / torch.where(std_s > 0, std_s, 1.0), 0.0)


class DDIM(Ancestral):
    """Deterministic steps (arXiv:2010.02502): `Ancestral` with `eta` 0.

    Args:
        steps: See `Sampler`.
        eta: 0 for DDIM; 1 is `Ancestral`.
        spacing: See `Sampler`.
    """

    default_eta = 0.0

    def __init__(self, steps: int, eta: float = 0.0, spacing: Spacing = "trailing") -> None:
        super().__init__(steps, eta, spacing)


class DPMSolverPlusPlus(Sampler):
    """DPM-Solver++(2M), of second order in the half log-SNR (Algorithm 2 of arXiv:2211.01095), or its SDE counterpart.

    Its update is the first-order step, DDIM's or the posterior's, towards a clean state that is extrapolated from the
    last two estimates. So it holds for every process whose mean is a multiple of x0 plus a term in the anchor: that
    term is known and drops out. The first step and the one to the clean state, where the half log-SNR is infinite, are
    of first order. So is that of a pixel that joins under YODA: what it held before is noise of other draws.

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

    @property
    def adds_noise(self) -> bool:
        """See `Sampler.adds_noise`."""
        return self.stochastic

    def grid(self, process: Process) -> Tensor:
        """See `Sampler.grid`; a process whose mean applies an operator to x0 is refused."""
        noise_to_signal(process, torch.ones(1))  # refused whatever the spacing
        if self.stochastic:
            needs_posterior(process, "DPMSolverPlusPlus with stochastic: true")
        return super().grid(process)

    def step(
        self, denoiser: Denoiser, x_t: Tensor, memory: Memory, *, t: Tensor, s: Tensor, randn: Randn
    ) -> tuple[Tensor, Memory]:
        """Extrapolates the estimate to the middle of the step, then steps there."""
        process = denoiser.process
        estimate, now = denoiser(x_t, t), _half_log_snr(process, t)

        x0 = estimate
        known = denoiser.diffusing(t)
        if memory:
            before, then, was_known = memory
            before = torch.where(was_known, before, estimate)  # a pixel that has just joined has no estimate before
            share = _extrapolation(then, now, _half_log_snr(process, s))
            x0 = estimate + expand(share, estimate) * (estimate - before)

        x_s = process.step(x_t, x0=x0, anchor=denoiser.anchor, t=t, s=s, eta=float(self.stochastic), randn=randn)
        return x_s, (estimate, now, known)


def _half_log_snr(process: Process, t: Tensor) -> Tensor:
    return -noise_to_signal(process, t).log()


def _extrapolation(before: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """Half of this step's length divided by the previous step's, `[B]`; 0 where the step ends in the clean state."""
    share = (then - now) / (now - before) / 2
    return torch.where(then.isfinite() & (now > before), share, 0.0)


class Heun(Sampler):
    """Heun's second-order steps in the noise-to-signal ratio (Algorithm 1 of EDM, arXiv:2206.00364).

    Evaluates the denoiser twice at each step but the last: 2 `steps` - 1 times in all. Churn, and what Relay Diffusion
    does differently, are in `edm_samplers.py`.

    Args:
        steps: See `Sampler`.
        eta: Share of the posterior's noise, drawn anew for each of the two evaluations.
        spacing: See `Sampler`. If a table ends in almost pure noise, the first step of `trailing` covers most of the
            range of the ratio, which is too far for a second-order step.
    """

    def __init__(self, steps: int, eta: float = 0.0, spacing: Spacing = "karras") -> None:
        super().__init__(steps, spacing, eta)

    def grid(self, process: Process) -> Tensor:
        """See `Sampler.grid`.

        Raises:
            ValueError: the process starts without any signal, where the ratio is infinite.
        """
        self.ratio(process, torch.ones(1))  # raises for a mean that is not a multiple of x0, whatever the spacing
        times = super().grid(process)
        if self.ratio(process, times).isinf().any():
            raise ValueError(
                f"Heun steps in the noise-to-signal ratio, which is infinite at the start of {type(process).__name__}; "
                "choose DDIM or DPMSolverPlusPlus"
            )
        return times

    def ratio(self, process: Process, t: Tensor) -> Tensor:
        """The variable that the steps are taken in: the noise-to-signal ratio, `[B]`."""
        return noise_to_signal(process, t)

    def slope(self, process: Process, x: Tensor, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """Derivative of `x / alpha` by `ratio`, which is the noise in `x` given the estimate `x0`, `[B,C,H,W]`."""
        std = process.std(t)
        return (x - process.mean(x0=x0, anchor=anchor, t=t)) / expand(torch.where(std > 0, std, 1.0), x)

    def estimate(self, denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
        """The denoiser's estimate of the clean state, `[B,C,H,W]`."""
        return denoiser(x, t)

    def step(
        self, denoiser: Denoiser, x_t: Tensor, memory: Memory, *, t: Tensor, s: Tensor, randn: Randn
    ) -> tuple[Tensor, Memory]:
        """An Euler step, then the same step with the mean of the slopes found at both its ends."""
        denoiser = denoiser.during(t)
        process, anchor = denoiser.process, denoiser.anchor
        x0 = self.estimate(denoiser, x_t, t)
        x_s = process.step(x_t, x0=x0, anchor=anchor, t=t, s=s, eta=self.eta, randn=randn)
        if not (s > 0).any():
            return x_s, ()

        there = self.slope(process, x_s, x0=self.estimate(denoiser, x_s, s), anchor=anchor, t=s)
        change = there - self.slope(process, x_t, x0=x0, anchor=anchor, t=t)

        # The estimate of the clean state for which the slope at x_t is the mean slope.
        x0 = x0 - expand(self.ratio(process, t) / 2, x_t) * change
        corrected = process.step(x_t, x0=x0, anchor=anchor, t=t, s=s, eta=self.eta, randn=randn)
        return torch.where(expand(s > 0, x_t) > 0, corrected, x_s), ()
