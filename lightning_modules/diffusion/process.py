"""The forward process, and the one reverse step that all methods share."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lightning_modules.diffusion.randomness import Randn

Spacing = Literal["trailing", "uniform", "quadratic", "karras"]
"""How the times of a run are spread, see `spacing.spaced`."""


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Coefficients `[B]` in the shape `[B,1,1,1]` of states, on the device of `like` and in float32 or wider."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return value.to(device=like.device, dtype=dtype).view(-1, *[1] * (like.dim() - 1))


class Process(ABC):
    """`x_t = mean(x0, anchor, t) + std(t) * noise`, with a mean that is linear in `(x0, anchor)` and `std(0) = 0`.

    The clock `t` is float64 `[B]` in [0, 1], on the CPU; 0 is the clean state. `s` is always the smaller, next time.
    `anchor` is the degraded image in state space. States are `[B,C,H,W]`; coefficients are computed in float64 and
    applied in float32 or wider. A process holds numbers and no state: noise comes from the `Randn` that is passed in.

    Attributes:
        steps: Length T of the table that it was defined on; None where the clock is continuous.
        anchored: Whether sampling starts from the anchor; otherwise it starts from noise alone.
        scalar_mean: Whether the mean contains `x0` times a number, `alpha`; otherwise it applies an operator to `x0`.
        keeps_scale: Whether noise is added without scaling the image down, so that `std` is EDM's sigma.
        markov: Whether the stochastic step is the posterior of a Markov chain, which SDE solvers approximate;
            otherwise it replaces all noise.
        own_spacing: The name of the spacing of `grid`.
    """

    steps: int | None = None
    anchored: bool = True
    scalar_mean: bool = True
    keeps_scale: bool = False
    markov: bool = True
    own_spacing: Spacing = "trailing"

    @abstractmethod
    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """Mean of the state at time `t`, `[B,C,H,W]`."""

    @abstractmethod
    def std(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise in the state at time `t`, `[B]`."""

    @abstractmethod
    def kept_and_fresh(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Standard deviations of the two noises in the state after a stochastic step (`eta = 1`) from `t` to `s`.

        Returns:
            The deviation of the noise that is kept from `x_t` and that of the fresh noise, `[B]` each. Their squares
            add up to `std(s)^2`.
        """

    @abstractmethod
    def grid(self, steps: int) -> Tensor:
        """Times of a run of `steps` steps: float64 `[steps + 1]`, falling to 0.

        Raises:
            ValueError: the process cannot be sampled in this number of steps.
        """

    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of `x0` in the mean, `[B]`.

        Raises:
            TypeError: the mean applies an operator to `x0` (`scalar_mean` is False).
        """
        raise TypeError(
            f"the mean of {type(self).__name__} is not a multiple of x0, which Epsilon, label: level, "
            "DPMSolverPlusPlus, Heun and karras spacing rely on; choose Preconditioned or Clean, and sample with "
            "Ancestral, DDIM, EDMHeun or RelayHeun"
        )

    def run_share(self, t: Tensor) -> Tensor:
        """Share of a run that lies ahead at `t`, float64 `[B]`: from 1 at its start to 0 at its end.

        YODA's mask goes by it, in training too, where times beyond the start of a run also give 1. It is `t` itself
        where runs start at t = 1 and spread their steps evenly.
        """
        return t.double()

    def posterior_ratio(self, t: Tensor) -> Tensor:
        """The ratio by which a posterior step from `t` to `s` weighs `x0`, `[B]`.

        The weight is `alpha(s) (1 - ratio(s)^2 / ratio(t)^2)`. The ratio is that of noise to signal where the forward
        transition multiplies the state by `alpha(t) / alpha(s)`.
        """
        return noise_to_signal(self, t)

    def sample_t(self, n: int) -> Tensor:
        """Training times, float64 `[n]`, uniform on (0, 1]."""
        return 1 - torch.rand(n, dtype=torch.float64)

    def noise(self, like: Tensor, randn: Randn = torch.randn_like) -> Tensor:
        """The noise of the process in the shape of `like`, of unit variance, computed from draws of `randn`."""
        return randn(like)

    def diffuse(self, *, x0: Tensor, anchor: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """A state at time `t` (the papers' q-sample), `[B,C,H,W]`."""
        return self.mean(x0=x0, anchor=anchor, t=t) + expand(self.std(t), x0) * noise

    def start(self, *, anchor: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The state that sampling starts from: the anchor diffused to `t`."""
        return self.diffuse(x0=anchor, anchor=anchor, t=t, noise=noise)

    def step(
        self,
        x_t: Tensor,
        *,
        x0: Tensor,
        anchor: Tensor,
        t: Tensor,
        s: Tensor,
        eta: float,
        randn: Randn = torch.randn_like,
        added_std: Tensor | None = None,
    ) -> Tensor:
        """The reverse step from `t` to `s`, given the denoiser's estimate `x0`.

        `x_s = mean(x0, anchor, s) + sqrt(std(s)^2 - tau^2) * noise_hat + tau * noise`, `tau = eta * fresh`, and
        `noise_hat` the noise that `x0` leaves in `x_t`. `eta = 1` is the Markov posterior (Eq. 7 of DDPM,
        arXiv:2006.11239), `eta = 0` is deterministic (Eq. 12 of DDIM, arXiv:2010.02502), both between any two times.

        Args:
            x_t: State at `t`, `[B,C,H,W]`.
            x0: Estimate of the clean state.
            anchor: The degraded image as a state.
            t: Current time, `[B]`.
            s: Next time, `[B]`; samples with `s == t` are returned unchanged.
            eta: Share of the fresh noise that is added, 0 to 1.
            randn: Source of the fresh noise.
            added_std: Standard deviation of the noise that is added at `eta = 1`, `[B]`; None for that of the fresh
                noise.
        """
        std_t = self.std(t)
        kept, fresh = self.kept_and_fresh(t, s)

        # sqrt(std(s)^2 - tau^2) / std(t), written so that no two almost equal numbers are subtracted near eta = 1.
        left = (kept**2 + (1 - eta**2) * fresh**2).clamp(min=0).sqrt() / torch.where(std_t > 0, std_t, 1.0)
        remaining = x_t - self.mean(x0=x0, anchor=anchor, t=t)
        x_s = self.mean(x0=x0, anchor=anchor, t=s) + expand(left, x_t) * remaining

        if eta > 0:
            added = fresh if added_std is None else added_std
            x_s = x_s + expand(eta * added, x_t) * self.noise(x_t, randn)
        return torch.where(expand(s == t, x_t) > 0, x_t, x_s)


class Tabulated(Process):
    """A process that is defined by a table of T steps.

    The clock is the index of the table entry, divided by T. Entry 0 is the clean state; entry k has index k - 1 in the
    papers.

    Args:
        steps: Number of steps T.
    """

    steps: int

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.tables: dict[str, Tensor] = {}  # float64 [T + 1], filled by the constructor of the subclass

    def lookup(self, name: str, t: Tensor) -> Tensor:
        """The value of the table `name` at `t`, float64 `[B]`, interpolated linearly between entries."""
        index = t.double() * self.steps
        below = index.long().clamp(0, self.steps - 1)
        table = self.tables[name]
        return torch.lerp(table[below], table[below + 1], (index - below).clamp(0, 1))

    def run_share(self, t: Tensor) -> Tensor:
        """See `Process.run_share`: the time of the table entry at or above `t`."""
        return table_time(self, t.double())

    def sample_t(self, n: int) -> Tensor:
        """Training times, float64 `[n]`: uniform over the table entries 1 to T."""
        return torch.randint(1, self.steps + 1, (n,)).double() / self.steps

    def grid(self, steps: int) -> Tensor:
        """Evenly spaced table entries, from the last to the clean one.

        Raises:
            ValueError: `steps` is outside 1 to T.
        """
        if not 1 <= steps <= self.steps:
            raise ValueError(
                f"this process was defined with {self.steps} steps; it cannot be sampled with {steps}: set the "
                f"sampler's steps to 1 to {self.steps}"
            )
        return torch.linspace(self.steps, 0, steps + 1, dtype=torch.float64).round() / self.steps


def table_time(process: Process, t: Tensor) -> Tensor:
    """The time of the table entry at or above `t`, `[B]`; `t` itself where the clock is continuous.

    Step-indexed labels go by it, and YODA's mask.
    """
    if process.steps is None:
        return t
    return (t * process.steps - 1e-9).ceil() / process.steps  # 1e-9: k / T * T may exceed k by rounding


def noise_to_signal(process: Process, t: Tensor) -> Tensor:
    """`std / alpha`, EDM's sigma; infinite where no signal is left. In the shape of `t`.

    Raises:
        TypeError: the process's mean is not a multiple of x0.
    """
    return process.std(t) / process.alpha(t)
