"""The process of EDM: noise levels that are log-normal in training (arXiv:2206.00364)."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Process


class LogNormal(Process):
    """A process whose noise level is log-normal in a uniform clock (Table 1 of EDM, arXiv:2206.00364).

    `sigma(t) = exp(p_std * quantile(prob_length * t) + p_mean)`, with the quantile function of the normal distribution:
    uniform times draw the levels that EDM trains with, cut off above the quantile `prob_length`. Sampling runs along
    levels whose 1/rho-th powers are evenly spaced (Eq. 5).

    Args:
        p_mean: Mean of the logarithm of the level.
        p_std: Its standard deviation.
        prob_length: Quantile of the largest level, in (0, 1).
        sigma_start: Level that sampling starts from.
        sigma_min: Smallest level of a sampling run but for 0.
        rho: Exponent of the sampling levels; large values crowd them at the small end.

    Raises:
        ValueError: sampling would start above the levels of training.
    """

    scalar_mean = False
    keeps_scale = True
    markov = False

    def __init__(
        self, *, p_mean: float, p_std: float, prob_length: float, sigma_start: float, sigma_min: float, rho: float
    ) -> None:
        self.p_mean, self.p_std, self.prob_length = p_mean, p_std, prob_length
        self.sigma_start, self.sigma_min, self.rho = sigma_start, sigma_min, rho

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
        """The noise level `sigma(t)`, float64 `[B]`; for a relay with block noise, that of its white part."""
        normal: Tensor = torch.special.ndtri(self.prob_length * t.double())
        return (self.p_std * normal + self.p_mean).exp()

    def _quantile(self, sigma: Tensor) -> Tensor:
        quantile: Tensor = torch.special.ndtr((sigma.double().log() - self.p_mean) / self.p_std)
        return quantile

    def kept_and_fresh(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """All noise is fresh: `eta` is the share of it that each step replaces, RDM's `s_noise`."""
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
    """Falling noise levels whose 1/rho-th powers are evenly spaced (Eq. 5 of EDM), float64 `[steps]`."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    start, end = largest ** (1 / rho), smallest ** (1 / rho)
    return torch.pow(start + ramp * (end - start), rho)


class EDMProcess(LogNormal):
    """`x_t = x0 + sigma(t) noise`, started from pure noise (arXiv:2206.00364); the anchor plays no part.

    EDM draws levels without bound; here they end at `sigma_max`, which one draw in 600,000 would exceed.

    Args:
        sigma_max: Largest level, where sampling starts.
        sigma_min: Smallest level of a sampling run but for 0.
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
        """1."""
        return torch.ones_like(t, dtype=torch.float64)

    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """The clean state."""
        return x0

    def start(self, *, anchor: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Pure noise."""
        return self.diffuse(x0=torch.zeros_like(anchor), anchor=anchor, t=t, noise=noise)
