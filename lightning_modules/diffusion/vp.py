"""Variance-preserving diffusion: the process of DDPM, SR3, SRDiff and Stable Diffusion."""

from typing import Literal

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Process, expand
from lightning_modules.diffusion.schedules import Schedule


class VP(Process):
    """`x_t = sqrt(ab_t) x0 + sqrt(1 - ab_t) noise`, started from pure noise; the anchor plays no part.

    The clock is the index into the table of T levels, divided by T. Between two entries `sqrt(ab)` is interpolated
    linearly, which is how SR3 draws its continuous noise level (Eq. 11 of SR3, arXiv:2104.07636, in the form that the
    public weights were trained with: uniform in sqrt(ab)).

    Args:
        schedule: The betas.
        continuous: Train at any time in (0, 1] (SR3) instead of the T table entries only (DDPM, SRDiff).
        shared_t: One table entry per batch instead of one per sample, as the widely used SR3 code draws it.
        posterior_variance: Noise of a stochastic step: `small`, the posterior's, or `large`, beta_t (SR3's paper).
    """

    def __init__(
        self,
        schedule: Schedule,
        continuous: bool = False,
        shared_t: bool = False,
        posterior_variance: Literal["small", "large"] = "small",
    ) -> None:
        super().__init__()
        self.steps: int = schedule.steps
        self.continuous, self.shared_t, self.posterior_variance = continuous, shared_t, posterior_variance
        self.betas = schedule.betas()
        self._alpha = schedule.alphas_cumprod().sqrt()

    def alpha(self, t: Tensor) -> Tensor:
        """Signal level `sqrt(ab_t)`, float64 `[B]`."""
        index = t.double() * self.steps
        below = index.floor().clamp(0, self.steps - 1).long()
        table = self._alpha = self._alpha.to(t.device)
        return torch.lerp(table[below], table[below + 1], (index - below).clamp(0, 1))

    def std(self, t: Tensor) -> Tensor:
        """`sqrt(1 - ab_t)`, float64 `[B]`."""
        return (1 - self.alpha(t) ** 2).clamp(min=0).sqrt()

    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`sqrt(ab_t) x0`."""
        return expand(self.alpha(t), x0) * x0

    def fresh_std(self, t: Tensor, s: Tensor) -> Tensor:
        """Standard deviation of `q(x_s | x_t, x0)` (Eq. 7 of DDPM, for any s < t)."""
        std_t = self.std(t)
        return self.std(s) * self._transition_std(t, s) / torch.where(std_t > 0, std_t, 1.0)

    def added_std(self, t: Tensor, s: Tensor) -> Tensor:
        """The posterior's, or that of the transition itself; none in a step to the clean image."""
        if self.posterior_variance == "small":
            return self.fresh_std(t, s)
        return torch.where(s > 0, self._transition_std(t, s), 0.0)

    def _transition_std(self, t: Tensor, s: Tensor) -> Tensor:
        gain = self.alpha(t) / self.alpha(s)
        return (self.std(t) ** 2 - (gain * self.std(s)) ** 2).clamp(min=0).sqrt()

    def start(self, *, anchor: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Pure noise."""
        return noise

    def tick(self, t: Tensor) -> Tensor:
        """The table entry at or above `t`, as a time."""
        return (t * self.steps - 1e-9).ceil() / self.steps

    def sample_t(self, n: int, device: torch.device) -> Tensor:
        """Table entries 1..T, uniform; with `continuous`, uniform inside the drawn bin as well."""
        entries = torch.randint(1, self.steps + 1, (1 if self.shared_t else n,), device=device).expand(n)
        inside = torch.rand(n, dtype=torch.float64, device=device) if self.continuous else 0
        return (entries - inside) / torch.tensor(self.steps, dtype=torch.float64, device=device)

    def grid(self, steps: int) -> Tensor:
        """Evenly spread table entries, from the last to the clean one.

        Raises:
            ValueError: `steps` is not within 1..T.
        """
        if not 1 <= steps <= self.steps:
            raise ValueError(f"this process was defined with {self.steps} steps; it cannot be sampled with {steps}")
        return torch.linspace(self.steps, 0, steps + 1, dtype=torch.float64).round() / self.steps
