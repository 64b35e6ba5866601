"""The forward process of EDM, whose noise levels are log-normal in training (arXiv:2206.00364)."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Process


class LogNormal(Process):
    """A process whose noise level is log-normal when t is uniform (Table 1 of EDM, arXiv:2206.00364).

    `sigma(t) = exp(p_std * quantile(prob_length * t) + p_mean)`, with the quantile function of the normal distribution.
    So uniform times give the distribution of noise levels that EDM trains with, truncated above its quantile
    `prob_length`. Sampling uses noise levels whose 1/rho-th powers are evenly spaced (Eq. 5).

    Args:
        p_mean: Mean of the logarithm of the noise level.
        p_std: Standard deviation of the logarithm of the noise level.
        prob_length: Quantile of the largest noise level, in (0, 1).
        sigma_start: Noise level at which sampling starts.
        sigma_min: Last noise level of a sampling run before 0.
        rho: Exponent of the spacing; with larger values, more of the levels are small.

    Raises:
        ValueError: `sigma_start` is above the largest noise level of training.
    """

    scalar_mean = False
    keeps_scale = True
    markov = False

    def __init__(
        self, *, p_mean: float, p_std: float, prob_length: float, sigma_start: float, sigma_min: float, rho: float
    ) -> None:
        self.p_mean, self.p_std, self.prob_length = p_mean, p_std, prob_length
        self.sigma_start, self.sigma_min, self.rho = sigma_start, sigma_min, rho

        # Quantile and inverse return sigma_max itself only up to rounding.
        largest = self.std(torch.ones(1)).item()
        if sigma_start > largest * (1 + 1e-6):
            raise ValueError(
                f"a noise level of {sigma_start:.6g} is above {largest:.6g}, the largest that {type(self).__name__} is "
                f"trained on (quantile {prob_length:.6g}); lower sigma_start"
            )

    @abstractmethod
    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """See `Process.mean`."""

    def std(self, t: Tensor) -> Tensor:
        """The noise level `sigma(t)`, float64 `[B]`; with Relay's block noise, the level of the white noise alone."""
        normal: Tensor = torch.special.ndtri(self.prob_length * t.double())
        return (self.p_std * normal + self.p_mean).exp()

    def _quantile(self, sigma: Tensor) -> Tensor:
        """The share of untruncated training levels below `sigma`, float64 in its shape."""
        quantile: Tensor = torch.special.ndtr((sigma.double().log() - self.p_mean) / self.p_std)
        return quantile

    def kept_and_fresh(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """See `Process.kept_and_fresh`: a stochastic step replaces all noise; `eta` is the `s_noise` of RDM."""
        std = self.std(s)
        return torch.zeros_like(std), std

    def run_share(self, t: Tensor) -> Tensor:
        """See `Process.run_share`: where the level lies on the ramp from `sigma_min` to `sigma_start`.

        The clock is a quantile of the training levels, in which the steps of a run are not evenly spread: of Relay's
        published run 43% lie below t = 0.1.
        """
        start, end = self.sigma_start ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        ahead: Tensor = (self.std(t).pow(1 / self.rho) - end) / (start - end)
        return ahead.clamp(0, 1)

    def grid(self, steps: int) -> Tensor:
        """The times of `steps` levels from `sigma_start` to `sigma_min`, then 0.

        Raises:
            ValueError: `steps` is below 1.
        """
        if steps < 1:
            raise ValueError(f"sampling takes at least one step, got steps={steps}")
        times = self._quantile(levels(steps, self.sigma_start, self.sigma_min, self.rho)) / self.prob_length
        return torch.cat([times.clamp(max=1), torch.zeros(1)])


def levels(steps: int, largest: float, smallest: float, rho: float) -> Tensor:
    """Noise levels from `largest` to `smallest` with evenly spaced 1/rho-th powers (Eq. 5), float64 `[steps]`."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    start, end = largest ** (1 / rho), smallest ** (1 / rho)
    return torch.pow(start + ramp * (end - start), rho)


class EDMProcess(LogNormal):
    """`x_t = x0 + sigma(t) noise`, sampled from pure noise (arXiv:2206.00364); the anchor is not used.

    EDM's training levels are unbounded. Here they are truncated at `sigma_max`, which one draw in 600,000 would exceed
    with the defaults.

    Args:
        sigma_max: Largest noise level, at which sampling starts.
        sigma_min: Last noise level of a sampling run before 0.
        rho: See `LogNormal`.
        p_mean: See `LogNormal`.
        p_std: See `LogNormal`.
    """

    anchored = False
    scalar_mean = True
    own_spacing = "karras"

    def __init__(
        self,
        sigma_max: float = 80.0,
        sigma_min: float = 0.002,
        rho: float = 7.0,
        p_mean: float = -1.2,
        p_std: float = 1.2,
    ) -> None:
        prob_length = 0.5 * (1 + math.erf((math.log(sigma_max) - p_mean) / p_std / 2**0.5))
        super().__init__(
            p_mean=p_mean, p_std=p_std, prob_length=prob_length, sigma_start=sigma_max, sigma_min=sigma_min, rho=rho
        )

    def alpha(self, t: Tensor) -> Tensor:
        """1, float64 `[B]`: the image is not scaled."""
        return torch.ones_like(t, dtype=torch.float64)

    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """The clean state."""
        return x0

    def start(self, *, anchor: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Pure noise of the level at `t`."""
        return self.diffuse(x0=torch.zeros_like(anchor), anchor=anchor, t=t, noise=noise)
