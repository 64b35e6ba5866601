"""Variance-preserving processes: that of DDPM, SR3, SRDiff and Stable Diffusion, and DoSSR's with a shifted mean."""

import math
from itertools import accumulate

import torch
from torch import Tensor

from lightning_modules.diffusion.process import Tabulated, expand
from lightning_modules.diffusion.schedules import Schedule


class VP(Tabulated):
    """`x_t = sqrt(ab_t) x0 + sqrt(1 - ab_t) noise`, sampled from pure noise; the anchor is not used.

    The clock is the index into the table of T levels, divided by T. Between two entries `sqrt(ab)` is interpolated
    linearly, which is how SR3 draws its continuous noise level (Eq. 11 of SR3, arXiv:2104.07636, in the form that the
    public weights were trained with: uniform in sqrt(ab)).

    Args:
        schedule: The betas.
        continuous: Train at all times in (0, 1] (SR3) instead of only at the T table entries (DDPM, SRDiff).
        shared_t: Draw one table entry for the batch instead of one for each sample, as the widely used SR3 code does.
    """

    anchored = False

    def __init__(self, schedule: Schedule, continuous: bool = False, shared_t: bool = False) -> None:
        super().__init__(schedule.steps)
        self.schedule = schedule
        self.continuous, self.shared_t = continuous, shared_t
        self.tables["signal"] = schedule.alphas_cumprod().sqrt()

    def signal(self, t: Tensor) -> Tensor:
        """Signal level `sqrt(ab_t)`, float64 `[B]`."""
        return self.lookup("signal", t)

    def alpha(self, t: Tensor) -> Tensor:
        """The signal level `sqrt(ab_t)`, float64 `[B]`."""
        return self.signal(t)

    def std(self, t: Tensor) -> Tensor:
        """`sqrt(1 - ab_t)`, float64 `[B]`."""
        return (1 - self.signal(t) ** 2).clamp(min=0).sqrt()

    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`sqrt(ab_t) x0`."""
        return expand(self.alpha(t), x0) * x0

    def kept_and_fresh(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """See `Process.kept_and_fresh`: the noise of `q(x_s | x_t, x0)` (Eq. 7 of DDPM, for any s < t)."""
        std_t, std_s, gain = self.std(t), self.std(s), self.gain(t, s)
        # Deviation of the noise that the transition from s to t adds; rounding may take its square below 0.
        transition = (std_t**2 - (gain * std_s) ** 2).clamp(min=0).sqrt()
        divisor = torch.where(std_t > 0, std_t, 1.0)
        return gain * std_s**2 / divisor, std_s * transition / divisor

    def gain(self, t: Tensor, s: Tensor) -> Tensor:
        """Factor by which the forward transition from `s` to `t` multiplies the state, `[B]`."""
        return self.alpha(t) / self.alpha(s)

    def start(self, *, anchor: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Pure noise."""
        return noise

    def sample_t(self, n: int) -> Tensor:
        """Training times, float64 `[n]`: uniform over the table entries 1 to T.

        With `continuous`, also uniform between an entry and the one below it.
        """
        entries = torch.randint(1, self.steps + 1, (1 if self.shared_t else n,)).expand(n)
        inside = torch.rand(n, dtype=torch.float64) if self.continuous else 0
        return (entries - inside) / torch.tensor(self.steps, dtype=torch.float64)


class DomainShift(VP):
    """VP whose mean shifts from the clean to the degraded image: the process of DoSSR (arXiv:2409.17778).

    `x_t = sqrt(ab_t) ((1 - shift_t) x0 + shift_t anchor) + sqrt(1 - ab_t) noise`. The shift is complete at entry
    `shift_steps`, so sampling starts there, from the noised anchor, instead of from pure noise at T.

    Args:
        schedule: The betas.
        shift_steps: Entry at which the shift is complete; the paper's t1, half of T.
        train_steps: Last entry of training; None for all T, as published. Sampling uses no entry above `shift_steps`.
        ramp: First and last value of u in `shift = sin^2(pi u / 2)`, where u is linear in the entry.

    Raises:
        ValueError: `shift_steps` or `train_steps` is outside the table.
    """

    anchored = True

    def __init__(
        self,
        schedule: Schedule,
        shift_steps: int,
        train_steps: int | None = None,
        ramp: tuple[float, float] = (0.001, 0.999),
    ) -> None:
        super().__init__(schedule)
        self.shift_steps, self.train_steps = shift_steps, train_steps or schedule.steps
        if not 2 <= shift_steps <= self.steps or not 1 <= self.train_steps <= self.steps:
            raise ValueError(
                f"shift_steps {shift_steps} and train_steps {self.train_steps} must lie within the schedule's "
                f"{self.steps} steps, and a shift takes at least 2"
            )

        angle = torch.linspace(*ramp, shift_steps, dtype=torch.float64) * math.pi / 2
        zeros = torch.zeros(self.steps - shift_steps, dtype=torch.float64)
        one = torch.ones(1, dtype=torch.float64)

        # The clean image's share is cos^2: `1 - sin^2` would lose its digits where the shift is almost complete.
        self.tables["alpha"] = self.tables["signal"] * torch.cat([one, angle.cos() ** 2, zeros])
        self.tables["anchor_alpha"] = self.tables["signal"] * torch.cat([0 * one, angle.sin() ** 2, zeros + 1])

    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the clean image, `sqrt(ab_t) (1 - shift_t)`."""
        return self.lookup("alpha", t)

    def anchor_alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the degraded image, `sqrt(ab_t) shift_t`, float64 `[B]`."""
        return self.lookup("anchor_alpha", t)

    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`sqrt(ab_t) ((1 - shift_t) x0 + shift_t anchor)`."""
        return expand(self.alpha(t), x0) * x0 + expand(self.anchor_alpha(t), x0) * anchor

    def gain(self, t: Tensor, s: Tensor) -> Tensor:
        """The ratio of the clean image's coefficients, or of the signal levels if the shift is complete at `s`."""
        complete = self.alpha(s) == 0
        level_t = torch.where(complete, self.signal(t), self.alpha(t))
        return level_t / torch.where(complete, self.signal(s), self.alpha(s))

    def start(self, *, anchor: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The anchor noised to `t`."""
        return self.diffuse(x0=anchor, anchor=anchor, t=t, noise=noise)

    def run_share(self, t: Tensor) -> Tensor:
        """See `Process.run_share`: runs start where the slide is complete."""
        return (super().run_share(t) * self.steps / self.shift_steps).clamp(max=1)

    def sample_t(self, n: int) -> Tensor:
        """Training times, float64 `[n]`: uniform over the table entries 1 to `train_steps`."""
        return torch.randint(1, self.train_steps + 1, (n,)).double() / self.steps

    def grid(self, steps: int) -> Tensor:
        """Evenly spaced entries from `shift_steps` to 1, rounded as published; the clean image takes the place of 1.

        Raises:
            ValueError: `steps` is outside 1 to `shift_steps - 1`.
        """
        if not 1 <= steps < self.shift_steps:
            raise ValueError(
                f"this process completes its shift in {self.shift_steps} steps; it cannot be sampled with {steps}: "
                f"set the sampler's steps to 1 to {self.shift_steps - 1}"
            )
        # A running sum, as in the public code, because its rounding errors decide how halves are rounded.
        indices = accumulate([(self.shift_steps - 1) / steps] * steps)
        entries = [0] + [round(index) + 1 for index in indices]
        return torch.tensor(entries[::-1], dtype=torch.float64) / self.steps
