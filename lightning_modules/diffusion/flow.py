"""Rectified flow: straight lines from the clean image to noise, or to the degraded image (arXiv:2209.03003)."""

import torch
from torch import Tensor

from lightning_modules.diffusion.parameterization import Clock, Noised, Parameterization, noise_label
from lightning_modules.diffusion.process import Process, expand


class RectifiedFlow(Process):
    """`x_t = (1 - t) x0 + t x1`, with `x1 = sigma * noise`, or with `from_anchor` `x1 = anchor + sigma * noise`.

    With `eta = 0` a step is an Euler step of the flow; with `eta = 1` it is the posterior of the Markov chain that has
    the same marginals.

    Args:
        from_anchor: Whether sampling starts from the degraded image with noise, or from noise alone.
        sigma: Standard deviation of the noise at `t = 1`.

    Raises:
        ValueError: `sigma` is not positive, so that stochastic steps have no noise to replace.
    """

    def __init__(self, from_anchor: bool = False, sigma: float = 1.0) -> None:
        if sigma <= 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        self.anchored, self.sigma = from_anchor, sigma

    def alpha(self, t: Tensor) -> Tensor:
        """`1 - t`, float64 `[B]`."""
        return 1 - t.double()

    def std(self, t: Tensor) -> Tensor:
        """`sigma t`, float64 `[B]`."""
        return self.sigma * t.double()

    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`(1 - t) x0`, plus `t anchor` with `from_anchor`."""
        mean = expand(self.alpha(t), x0) * x0
        return mean + expand(t, x0) * anchor if self.anchored else mean

    def kept_and_fresh(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """See `Process.kept_and_fresh`: the noise of `q(x_s | x_t, x0, anchor)`, as in Eq. 7 of DDPM."""
        std_t, std_s = self.std(t), self.std(s)
        gain = self.alpha(t) / torch.where(s < 1, self.alpha(s), 1.0)  # 0 / 0 at s = t = 1
        transition = (std_t**2 - (gain * std_s) ** 2).clamp(min=0).sqrt()
        divisor = torch.where(std_t > 0, std_t, 1.0)
        return gain * std_s**2 / divisor, std_s * transition / divisor

    def grid(self, steps: int) -> Tensor:
        """Evenly spaced times from 1 to 0.

        Raises:
            ValueError: `steps` is below 1.
        """
        if steps < 1:
            raise ValueError(f"sampling takes at least one step, got steps={steps}")
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


class FlowVelocity(Parameterization):
    """The network predicts `x1 - x0`, the velocity along the line (Eq. 1 of arXiv:2209.03003).

    Args:
        label: How the time is given to the network, see `noise_label`.
    """

    def __init__(self, label: Clock = "level") -> None:
        self.clock: Clock = label
        self.label = label

    def read(self, process: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The unscaled state, and the noise label."""
        return x_t, noise_label(process, t, self.clock)

    def target(self, process: Process, noised: Noised) -> Tensor:
        """`x1 - x0`: the end of the line minus its start."""
        end = process.diffuse(x0=noised.x0, anchor=noised.anchor, t=torch.ones_like(noised.t), noise=noised.noise)
        return end - noised.x0

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`x_t - t * output`."""
        return x_t - expand(t, x_t) * output
