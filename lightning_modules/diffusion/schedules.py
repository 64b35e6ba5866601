"""Variance schedules: the betas of a discrete diffusion, in float64."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Schedule(ABC):
    """`steps` betas; entry k belongs to the transition from table entry k to k + 1, entry 0 being the clean image.

    Args:
        steps: Number of transitions T.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"a schedule needs at least one step, got steps={steps}")
        self.steps = steps

    @abstractmethod
    def betas(self) -> Tensor:
        """Variances of the transitions: float64 `[steps]` in (0, 1]."""

    def alphas_cumprod(self) -> Tensor:
        """Squared signal levels, clean first: float64 `[steps + 1]`, falling from exactly 1.

        Raises:
            ValueError: a beta is no variance in (0, 1].
        """
        betas = self.betas()
        if not ((betas > 0) & (betas <= 1)).all():
            raise ValueError(
                f"{type(self).__name__}: betas must lie in (0, 1], but these go from {betas.min():g} to {betas.max():g}"
            )
        return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, dim=0)])


def _ramp(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


class Linear(Schedule):
    """Betas on a straight line from `start` to `end` (Ho et al., arXiv:2006.11239).

    Args:
        steps: Number of transitions T.
        start: First beta.
        end: Last beta.
        last: Replaces the last beta, as SRDiff's linear variant does with 0.999 so that the end is pure noise.
    """

    def __init__(self, steps: int, start: float, end: float, last: float | None = None) -> None:
        super().__init__(steps)
        self.start, self.end, self.last = start, end, last

    def betas(self) -> Tensor:
        """See `Schedule.betas`."""
        betas = _ramp(self.start, self.end, self.steps)
        if self.last is not None:
            betas[-1] = self.last
        return betas


class ScaledLinear(Linear):
    """Squares of a straight line between the roots of `start` and `end`; SR3's `quad`, Stable Diffusion's schedule."""

    def betas(self) -> Tensor:
        """See `Schedule.betas`."""
        return _ramp(self.start**0.5, self.end**0.5, self.steps) ** 2


class WarmUp(Linear):
    """Linear over the first `fraction` of the steps, then constant (SR3's `warmup10` and `warmup50`).

    Args:
        steps: Number of transitions T.
        start: First beta.
        end: Last beta.
        fraction: Share of the steps that rise, 0.1 or 0.5 as published.
    """

    def __init__(self, steps: int, start: float, end: float, fraction: float) -> None:
        super().__init__(steps, start, end)
        self.fraction = fraction

    def betas(self) -> Tensor:
        """See `Schedule.betas`."""
        betas = torch.full((self.steps,), self.end, dtype=torch.float64)
        rising = int(self.steps * self.fraction)
        betas[:rising] = _ramp(self.start, self.end, rising)
        return betas


class Constant(Schedule):
    """The same beta everywhere.

    Args:
        steps: Number of transitions T.
        value: The beta.
    """

    def __init__(self, steps: int, value: float) -> None:
        super().__init__(steps)
        self.value = value

    def betas(self) -> Tensor:
        """See `Schedule.betas`."""
        return torch.full((self.steps,), self.value, dtype=torch.float64)


class Harmonic(Schedule):
    """1/T, 1/(T-1), ..., 1 (SR3's `jsd`): ends without any signal, so the image cannot be read off the last step."""

    def betas(self) -> Tensor:
        """See `Schedule.betas`."""
        return 1 / torch.arange(self.steps, 0, -1, dtype=torch.float64)


class Cosine(Schedule):
    """Squared-cosine signal level (Nichol and Dhariwal, Eq. 17 of arXiv:2102.09672).

    Args:
        steps: Number of transitions T.
        offset: The small s that keeps the first betas away from zero.
        largest: No beta exceeds it.
    """

    def __init__(self, steps: int, offset: float = 0.008, largest: float = 0.999) -> None:
        super().__init__(steps)
        self.offset, self.largest = offset, largest

    def betas(self) -> Tensor:
        """See `Schedule.betas`."""
        time = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        level = torch.cos((time + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return (1 - level[1:] / level[:-1]).clamp(max=self.largest)
