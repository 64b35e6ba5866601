"""Samplers of EDM and Relay Diffusion: Heun's steps in the noise level, with a float64 state."""

import math

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Process, expand
from lightning_modules.diffusion.relay import EDM, LogNormal, Relay, levels
from lightning_modules.diffusion.samplers import AfterStep, Denoise, Heun, Step


class EDMHeun(Heun):
    """EDM's sampler (Algorithms 1 and 2 of arXiv:2206.00364); with `eta`, the variant of RDM's face model.

    Evaluates the network `2 * steps - 1` times. Steps run in the noise level, and the slope points to the clean state
    itself; the state is kept in float64 while the network sees its own precision.

    Args:
        steps: Number of noise levels; the process spaces them.
        eta: Share of the noise that each evaluation replaces. 0 is deterministic, RDM generates faces with 0.05.
        churn: EDM's S_churn: noise added back before the steps, over all of them. The level can grow by 41% at a step.
        churn_range: Noise levels between which it is added (S_min, S_max); what it is added to must stay within those
            of training.
        churn_noise: Factor on the added noise (S_noise).
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

    @property
    def name(self) -> str:
        """See `Sampler.name`, and the churn."""
        return super().name + (f"-churn{self.churn:g}" if self.churn > 0 else "")

    def grid(self, process: Process) -> Tensor:
        """See `Sampler.grid`.

        Raises:
            TypeError: the process has no log-normal noise levels, or churn is asked of one that blurs.
            ValueError: churn leads above the noise levels of training.
        """
        if not isinstance(process, LogNormal):
            raise TypeError(f"{type(self).__name__} needs EDM or Relay, not {type(process).__name__}; choose Heun")
        if self.churn > 0 and not isinstance(process, EDM):
            raise TypeError(f"churn adds noise but no blur, and {type(process).__name__} needs both: set churn: 0")
        times = super().grid(process)
        process.clock(self._raised(process.std(times[:-1])))
        return times

    def ratio(self, process: Process, t: Tensor) -> Tensor:
        """The noise level."""
        return process.std(t)

    def slope(self, process: Process, x: Tensor, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`(x - x0) / sigma`, towards the clean state also where the mean is blurred."""
        return (x - x0) / expand(process.std(t), x)

    def __call__(
        self, denoise: Denoise, process: Process, anchor: Tensor, after_step: AfterStep | None = None
    ) -> Tensor:
        """See `Sampler.__call__`."""

        def denoise_wide(x_t: Tensor, t: Tensor, rows: Tensor | None = None, /) -> Tensor:
            return denoise(x_t.to(anchor.dtype), t, rows).double()

        return super().__call__(denoise_wide, process, anchor.double(), after_step).to(anchor.dtype)

    def stepper(self, denoise: Denoise, process: Process, anchor: Tensor) -> Step:
        """See `Heun.stepper`; before it, the noise that churn adds."""
        step = super().stepper(denoise, process, anchor)
        if self.churn == 0:
            return step

        def churned(x_t: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
            x, raised = self._add_noise(process, x_t, t)
            return step(x, t=raised, s=s)

        return churned

    def _add_noise(self, process: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(process, EDM)
        sigma = process.std(t)
        raised = self._raised(sigma)
        added = (raised**2 - sigma**2).sqrt() * self.churn_noise
        return x_t + expand(added, x_t) * process.noise(x_t), process.clock(raised)

    def _raised(self, sigma: Tensor) -> Tensor:
        low, high = self.churn_range
        share = min(self.churn / self.steps, 2**0.5 - 1)
        return torch.where((low <= sigma) & (sigma <= high), sigma * (1 + share), sigma)


class RelayHeun(EDMHeun):
    """RDM's second-stage sampler: takes over from the low-resolution image (arXiv:2309.03350, as in its code).

    The published scripts name `steps` levels from `sigma_max` down, of which those below `sigma_start` are run: with
    the defaults 7 of 18, in 13 evaluations. A smaller `sigma_start` stays closer to the low-resolution image.

    Args:
        steps: Number of levels of the whole ramp.
        eta: Share of the noise that each evaluation replaces (`s_noise`).
        sigma_start: Only levels below it are run (`truncation_sigma`).
        sigma_max: Top of the ramp.
        sigma_min: Bottom of the ramp.
        rho: Exponent of the ramp, see `levels`.
        blur_prob_length: Quantile at which the blur ends (`truncation_t`), where it differs from the process's own.

    Raises:
        ValueError: no level is below `sigma_start`.
    """

    usual_eta = 0.2

    def __init__(
        self,
        steps: int = 18,
        eta: float = 0.2,
        sigma_start: float = 0.9,
        *,
        sigma_max: float = 80.0,
        sigma_min: float = 0.008,
        rho: float = 7.0,
        blur_prob_length: float | None = None,
    ) -> None:
        super().__init__(steps, eta)
        self.sigma_start, self.blur_prob_length = sigma_start, blur_prob_length
        ramp = levels(steps, sigma_max, sigma_min, rho)
        self.levels = ramp[ramp < sigma_start]
        if len(self.levels) == 0:
            raise ValueError(
                f"none of the {steps} noise levels from {sigma_max} to {sigma_min} is below sigma_start: "
                f"{sigma_start}; raise sigma_start, lower sigma_min or take more steps"
            )

    @property
    def name(self) -> str:
        """The number of levels that are run and where they begin, "relayheun-7-below-0.9"."""
        return f"{self.solver}-{len(self.levels)}-below-{self.sigma_start:g}{self.said_eta}"

    def grid(self, process: Process) -> Tensor:
        """The times of the levels that are run, then 0.

        Raises:
            TypeError: the process is no relay.
            ValueError: `sigma_start` is above the noise levels of training, or above where the blur is set to end.
        """
        if not isinstance(process, Relay):
            raise TypeError(
                f"RelayHeun continues a Relay process, not {type(process).__name__}; choose EDMHeun or Heun"
            )
        process.clock(torch.tensor([self.sigma_start], dtype=torch.float64))
        times = process.clock(self.levels)
        self._blurring(process).blur_sigma(times)
        return torch.cat([times, torch.zeros(1)])

    def _blurring(self, process: Relay) -> Relay:
        return process if self.blur_prob_length is None else process.blurring_by(self.blur_prob_length)

    def __call__(
        self, denoise: Denoise, process: Process, anchor: Tensor, after_step: AfterStep | None = None
    ) -> Tensor:
        """See `Sampler.__call__`."""
        if isinstance(process, Relay):
            process = self._blurring(process)
        return super().__call__(denoise, process, anchor, after_step)
