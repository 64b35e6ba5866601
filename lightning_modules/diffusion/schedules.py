"""Variance schedules: the betas of a discrete diffusion, in float64."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Schedule(ABC):
    """Betas of T transitions; beta k is that of the transition from table entry k to k + 1. Entry 0 is the clean image.

    Args:
        steps: Number of transitions T.

    Raises:
        ValueError: `steps` is below 1.
    """

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"a schedule needs at least one step, got steps={steps}")
        self.steps = steps

    @abstractmethod
    def betas(self) -> Tensor:
        """Variances of the noise that each transition adds: float64 `[steps]` in (0, 1]."""

    def alphas_cumprod(self) -> Tensor:
        """Squared signal levels from the clean image on: float64 `[steps + 1]`, falling from exactly 1.

        Raises:
            ValueError: a beta is outside (0, 1].
        """
        betas = self.betas()
        if not ((betas > 0) & (betas <= 1)).all():
            raise ValueError(
                f"{type(self).__name__}: betas must lie in (0, 1], but these go from {betas.min():g} to {betas.max():g}"
            )
        return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, dim=0)])


def _ramp(start: float, end: float, steps: int) -> Tensor:
    """Evenly spaced values from `start` to `end`, float64 `[steps]`."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


class Linear(Schedule):
    """Betas on a straight line from `start` to `end` (Ho et al., arXiv:2006.11239).

    Args:
        steps: Number of transitions T.
        start: First beta.
        end: Last beta.
        last: Replaces the last beta, so that the end is almost pure noise; SRDiff's linear variant uses 0.999.
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
    """Betas whose square roots lie on a straight line: SR3's `quad`, and the schedule of Stable Diffusion."""

    def betas(self) -> Tensor:
        """See `Schedule.betas`."""
        return _ramp(self.start**0.5, self.end**0.5, self.steps) ** 2


class WarmUp(Linear):
    """Betas that rise linearly over the first `fraction` of the steps, then constant (SR3's `warmup10`, `warmup50`).

    Args:
        steps: Number of transitions T.
        start: First beta.
        end: Last beta.
        fraction: Share of the steps in which betas rise, 0.1 or 0.5 as published.
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
    """The same beta for all transitions.

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
    """Betas 1/T, 1/(T-1), ..., 1 (SR3's `jsd`); the last state is pure noise."""

    def betas(self) -> Tensor:
        """See `Schedule.betas`."""
        return 1 / torch.arange(self.steps, 0, -1, dtype=torch.float64)


class Cosine(Schedule):
    """Squared-cosine signal level (Nichol and Dhariwal, Eq. 17 of arXiv:2102.09672).

    Args:
        steps: Number of transitions T.
        offset: The small offset s of the paper, which keeps the first betas from being almost 0.
        largest: Upper limit of the betas.
    """

    def __init__(self, steps: int, offset: float = 0.008, largest: float = 0.999) -> None:
        super().__init__(steps)
        self.offset, self.largest = offset, largest

    def betas(self) -> Tensor:
        """See `Schedule.betas`."""
        time = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        level = torch.cos((time + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return (1 - level[1:] / level[:-1]).clamp(max=self.largest)
