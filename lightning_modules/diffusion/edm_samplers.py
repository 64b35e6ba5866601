"""EDM's sampler: Heun steps over the noise level, with a wide state (arXiv:2206.00364)."""

import math

import torch
from torch import Tensor

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.process import Process, expand
from lightning_modules.diffusion.randomness import Randn
from lightning_modules.diffusion.samplers import AfterStep, Heun, Memory, start
from lightning_modules.diffusion.spacing import time_at
from lightning_modules.float64 import widest


class EDMHeun(Heun):
    """EDM's sampler (Algorithms 1 and 2 of arXiv:2206.00364); with `eta`, the variant of RDM's face model.

    Evaluates the network `2 * steps - 1` times. The steps are taken in the noise level, and the slope is
    `(x - x0) / sigma`. The state is float64, or float32 on devices without it; the network runs in its own precision.

    Args:
        steps: Number of noise levels; the process spaces them.
        eta: Share of the noise that each evaluation replaces: 0 is deterministic, RDM generates faces with 0.05.
        churn: EDM's S_churn: total amount of noise that is added back, spread over the steps. The noise level rises by
            at most 41% in a step.
        churn_range: Noise levels between which noise is added (S_min, S_max). The raised levels must not exceed the
            largest one of training.
        churn_noise: Factor on the standard deviation of the added noise (S_noise).
    """

    def __init__(
        self,
        steps: int,
        eta: float = 0.0,
        churn: float = 0.0,
        churn_range: tuple[float, float] = (0.0, math.inf),
        churn_noise: float = 1.0,
    ) -> None:
        super().__init__(steps, eta, spacing="trailing")
        self.churn, self.churn_range, self.churn_noise = churn, churn_range, churn_noise

    def name(self, process: Process) -> str:
        """See `Sampler.name`; followed by the churn, such as "edmheun-18-churn40"."""
        return super().name(process) + (f"-churn{self.churn:g}" if self.churn > 0 else "")

    @property
    def adds_noise(self) -> bool:
        """See `Sampler.adds_noise`."""
        return self.eta > 0 or self.churn > 0

    def grid(self, process: Process) -> Tensor:
        """See `Sampler.grid`.

        Raises:
            TypeError: the process scales the image down, or `churn` is set and the process blurs.
            ValueError: churn raises a noise level above the largest one of training.
        """
        if not process.keeps_scale:
            raise TypeError(
                f"{type(self).__name__} needs a process that adds noise without shrinking the image, EDM's or Relay's, "
                f"not {type(process).__name__}; choose Heun"
            )
        if self.churn > 0 and not process.scalar_mean:
            raise TypeError(f"churn adds noise but no blur, and {type(process).__name__} needs both: set churn: 0")
        times = super().grid(process)
        time_at(process, self._raised(process.std(times[:-1])))  # refuses levels that were not trained
        return times

    def ratio(self, process: Process, t: Tensor) -> Tensor:
        """The noise level, `[B]`."""
        return process.std(t)

    def slope(self, process: Process, x: Tensor, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`(x - x0) / sigma`, `[B,C,H,W]`; relative to the clean state itself also when the process blurs."""
        return (x - x0) / expand(process.std(t), x)

    def init(self, denoiser: Denoiser, t: Tensor, randn: Randn) -> tuple[Tensor, Memory]:
        """See `Sampler.init`; the state is in the widest type of the device."""
        anchor = denoiser.anchor
        return start(denoiser, anchor.to(widest(anchor.device)), t, randn), ()

    def estimate(self, denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
        """The denoiser's estimate, computed in its own precision and returned in that of the state."""
        return denoiser(x.to(denoiser.anchor.dtype), t).to(x.dtype)

    def step(
        self, denoiser: Denoiser, x_t: Tensor, memory: Memory, *, t: Tensor, s: Tensor, randn: Randn
    ) -> tuple[Tensor, Memory]:
        """See `Heun.step`; before it, churn raises the noise level."""
        denoiser = denoiser.during(t)
        if self.churn > 0:
            process = denoiser.process
            sigma = process.std(t)
            raised = self._raised(sigma)
            added = (raised**2 - sigma**2).sqrt() * self.churn_noise
            x_t = x_t + expand(added, x_t) * process.noise(x_t, randn)
            t = torch.where(raised > sigma, time_at(process, raised), t)
        return super().step(denoiser, x_t, memory, t=t, s=s, randn=randn)

    def follow(self, times: Tensor, denoiser: Denoiser, randn: Randn, after_step: AfterStep | None) -> Tensor:
        """See `Sampler.follow`; the result has the type of the anchor."""
        return super().follow(times, denoiser, randn, after_step).to(denoiser.anchor.dtype)

    def _raised(self, sigma: Tensor) -> Tensor:
        """Noise levels after churn (`t_hat` in Algorithm 2)."""
        low, high = self.churn_range
        share = min(self.churn / self.steps, 2**0.5 - 1)  # EDM's limit: never more new noise than there is already
        return torch.where((low <= sigma) & (sigma <= high), sigma * (1 + share), sigma)
