"""Relay Diffusion's sampler, which starts from the low-resolution image (arXiv:2309.03350)."""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.edm import levels
from lightning_modules.diffusion.edm_samplers import EDMHeun
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.randomness import Randn
from lightning_modules.diffusion.relay import RelayProcess
from lightning_modules.diffusion.samplers import AfterStep
from lightning_modules.diffusion.spacing import time_at


class RelayHeun(EDMHeun):
    """RDM's second-stage sampler: starts from the low-resolution image (arXiv:2309.03350, as in its code).

    As in the published scripts, `steps` counts the noise levels from `sigma_max` to `sigma_min`, but only those below
    the process's `sigma_start` (`truncation_sigma` there) are run: with the defaults 7 of 18, in 13 evaluations.

    Args:
        steps: Number of noise levels from `sigma_max` to `sigma_min`.
        eta: Share of the noise that each evaluation replaces (`s_noise`).
        sigma_max: First of the noise levels.
        sigma_min: Last of the noise levels.
        rho: Exponent of their spacing, see `levels`.
        blur_prob_length: Quantile at which the blur ends (`truncation_t`); None for the process's `prob_length`.

    Raises:
        ValueError: see `Sampler`.
    """

    default_eta = 0.2

    def __init__(
        self,
        steps: int = 18,
        eta: float = 0.2,
        *,
        sigma_max: float = 80.0,
        sigma_min: float = 0.008,
        rho: float = 7.0,
        blur_prob_length: float | None = None,
    ) -> None:
        super().__init__(steps, eta)
        self.sigma_max, self.sigma_min, self.rho = sigma_max, sigma_min, rho
        self.blur_prob_length = blur_prob_length

    def name(self, process: Process) -> str:
        """See `Sampler.name`: the number of levels that are run and where they start, "relayheun-7-below-0.9"."""
        relay = self._relay(process)
        return f"{self.solver}-{len(self._levels(relay))}-below-{relay.sigma_start:g}{self.eta_suffix}"

    def grid(self, process: Process) -> Tensor:
        """The times of the levels that are run, then 0.

        Raises:
            TypeError: the process is not a `RelayProcess`.
            ValueError: no level is below `sigma_start`, or a level is above the one where the blur ends.
        """
        relay = self._relay(process)
        times = time_at(relay, self._levels(relay))
        relay.blur_sigma(times)  # raises for times after the end of the blur
        return torch.cat([times, torch.zeros(1)])

    def _levels(self, process: RelayProcess) -> Tensor:
        """The noise levels that are run, falling, float64."""
        ramp = levels(self.steps, self.sigma_max, self.sigma_min, self.rho)
        below = ramp[ramp < process.sigma_start]
        if len(below) == 0:
            raise ValueError(
                f"none of the {self.steps} noise levels from {self.sigma_max} to {self.sigma_min} is below the "
                f"process's sigma_start: {process.sigma_start}; raise that, lower sigma_min or take more steps"
            )
        return below

    def _relay(self, process: Process) -> RelayProcess:
        """The process, with the blur of `blur_prob_length` if it is given."""
        if not isinstance(process, RelayProcess):
            raise TypeError(f"RelayHeun continues a RelayProcess, not {type(process).__name__}; choose EDMHeun or Heun")
        return process if self.blur_prob_length is None else process.blurring_by(self.blur_prob_length)

    def follow(self, times: Tensor, denoiser: Denoiser, randn: Randn, after_step: AfterStep | None) -> Tensor:
        """See `Sampler.follow`; runs with the blur of `blur_prob_length` if it is given."""
        relay = self._relay(denoiser.process)
        return super().follow(times, replace(denoiser, process=relay), randn, after_step)
