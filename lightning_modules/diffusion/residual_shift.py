"""ResShift's forward process: a short chain from the clean to the degraded image (arXiv:2307.12348)."""

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Tabulated, expand


class ResidualShift(Tabulated):
    """`x_t = x0 + shift_t (anchor - x0) + kappa sqrt(shift_t) noise`.

    `sqrt(shift)` is geometric in a warped time, Eq. 9-10 of the paper: entry k + 1 is
    `first * (last / first)^((k / (T - 1))^power)` with `first = min(min_noise_level / kappa, min_noise_level)`.

    Args:
        steps: Number of steps T, 15 in the paper and 4 in its journal version (arXiv:2403.07319).
        min_noise_level: Upper limit of the first noise level, `kappa sqrt(shift)` at the first entry.
        kappa: Standard deviation of the noise when the shift is complete.
        power: Exponent of the time in the schedule; with larger values the shift grows later.
        last: `sqrt(shift)` at the last entry, the public code's `etas_end`.

    Raises:
        ValueError: fewer than two steps, or a first level that is not below the last.
    """

    def __init__(
        self, steps: int, min_noise_level: float, kappa: float = 2.0, power: float = 0.3, last: float = 0.99
    ) -> None:
        super().__init__(steps)
        first = min(min_noise_level / kappa, min_noise_level)
        if steps < 2 or not 0 < first < last:
            raise ValueError(
                f"residual shifting needs at least 2 steps and 0 < first < last for sqrt(shift), "
                f"got steps {steps}, first {first:g} (min_noise_level {min_noise_level:g} over kappa), last {last:g}"
            )

        self.kappa = kappa
        time = torch.linspace(0, 1, steps, dtype=torch.float64) ** power
        root = first * (torch.tensor(last / first, dtype=torch.float64) ** time)
        self.tables["shift"] = torch.cat([torch.zeros(1, dtype=torch.float64), root**2])

    def shift(self, t: Tensor) -> Tensor:
        """The shift of the mean to the degraded image, the paper's eta_t: float64 `[B]` in [0, 1)."""
        return self.lookup("shift", t)

    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the clean image, `1 - shift_t`, float64 `[B]`."""
        return 1 - self.shift(t)

    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`x0 + shift_t (anchor - x0)`, Eq. 2."""
        return x0 + expand(self.shift(t), x0) * (anchor - x0)

    def std(self, t: Tensor) -> Tensor:
        """`kappa sqrt(shift_t)`, float64 `[B]`."""
        return self.kappa * self.shift(t).sqrt()

    def kept_and_fresh(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """See `Process.kept_and_fresh`: the noise of `q(x_s | x_t, x0, anchor)` (Eq. 6-7, for any s < t)."""
        shift_t, shift_s = self.shift(t), self.shift(s)
        divisor = torch.where(shift_t > 0, shift_t, 1.0)
        fresh = (shift_s / divisor * (shift_t - shift_s)).clamp(min=0).sqrt()
        return self.kappa * shift_s / divisor.sqrt(), self.kappa * fresh

    def posterior_ratio(self, t: Tensor) -> Tensor:
        """`std / sqrt(alpha)`, because the forward transition adds to the state without scaling it."""
        return self.std(t) / self.alpha(t).sqrt()

    def start(self, *, anchor: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The degraded image with the noise of `t`; the shift is taken as complete, as in the paper's sampling."""
        return anchor + expand(self.std(t), anchor) * noise
