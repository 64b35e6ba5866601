"""Loops over time. They know a denoiser and a process, and no network."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from lightning_modules.diffusion.process import Process

Denoise = Callable[[Tensor, Tensor], Tensor]
"""`(x_t [B,C,H,W], t [B]) -> estimate of the clean state [B,C,H,W]`."""


class AfterStep(Protocol):
    """Called with the new state after each step from `t` to `s`; what it returns is the state that goes on."""

    def __call__(self, x_s: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
        """New state, `[B,C,H,W]`; `t` and `s` are `[B]`."""


class Sampler(ABC):
    """Draws a clean state.

    Args:
        steps: Number of steps from the start to the clean state.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @property
    def name(self) -> str:
        """What results say of it, "ddim-10"."""
        return f"{type(self).__name__.lower()}-{self.steps}"

    @abstractmethod
    def __call__(
        self, denoise: Denoise, process: Process, anchor: Tensor, after_step: AfterStep | None = None
    ) -> Tensor:
        """A clean state, `[B,C,H,W]`, in the shape of `anchor`."""


class Ancestral(Sampler):
    """Stochastic steps through the process's posterior (Algorithm 2 of DDPM, arXiv:2006.11239).

    Args:
        steps: Number of steps; fewer than the process was trained with respaces it.
        eta: Share of the posterior's noise, 0 to 1.
    """

    def __init__(self, steps: int, eta: float = 1.0) -> None:
        super().__init__(steps)
        self.eta = eta

    def __call__(
        self, denoise: Denoise, process: Process, anchor: Tensor, after_step: AfterStep | None = None
    ) -> Tensor:
        """See `Sampler.__call__`."""
        times = process.grid(self.steps).to(anchor.device)
        batch = [time.expand(anchor.shape[0]) for time in times]
        x = process.start(anchor=anchor, t=batch[0], noise=process.noise(anchor))
        for t, s in pairwise(batch):
            x = process.step(x, x0=denoise(x, t), anchor=anchor, t=t, s=s, eta=self.eta)
            if after_step is not None:
                x = after_step(x, t=t, s=s)
        return x


class DDIM(Ancestral):
    """Deterministic steps (arXiv:2010.02502); the same loop with `eta` 0.

    Args:
        steps: Number of steps.
        eta: 0 for DDIM; 1 is `Ancestral`.
    """

    def __init__(self, steps: int, eta: float = 0.0) -> None:
        super().__init__(steps, eta)
